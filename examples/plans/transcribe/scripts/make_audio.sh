#!/bin/sh
# Makes recordings with a speech synthesiser: DIR/<name>.wav, and beside it DIR/<name>.txt with what
# was said. Without a file of "name: sentence" lines it makes three.
#
# flite (apt install flite) speaks so that a small recogniser understands it; espeak-ng, which is
# taken where there is no flite, is rarely understood.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: make_audio.sh DIR [SENTENCES]" >&2
    exit 2
fi
dir=$1
mkdir -p "$dir"

if command -v flite >/dev/null; then
    speak() { flite -voice slt -t "$1" -o "$2"; }
elif command -v espeak-ng >/dev/null; then
    speak() { espeak-ng -v en-us -s 140 -w "$2" "$1"; }
else
    echo "make_audio.sh: neither flite nor espeak-ng is there; on Debian and Ubuntu: apt install flite" >&2
    exit 1
fi

sentences() {
    if [ $# -eq 1 ]; then
        cat -- "$1"
        return
    fi
    cat <<'EOF'
weather: the weather is cold and the train is late today
music: my brother plays the piano in the evening
garden: she planted apple trees in the garden
EOF
}

shift
sentences "$@" | while IFS= read -r line; do
    name=${line%%:*}
    text=${line#*:}
    case $line in
    '' | '#'*) continue ;;
    *:*) ;;
    *)
        echo "make_audio.sh: \"$line\" is not \"name: sentence\"" >&2
        exit 1
        ;;
    esac
    text=${text# }
    speak "$text" "$dir/$name.wav"
    printf '%s\n' "$text" >"$dir/$name.txt"
    echo "$dir/$name.wav"
done
