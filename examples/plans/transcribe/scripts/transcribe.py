"""Runs a transcriber for one recording: its transcript, and a JSON file beside it with how it came about."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(transcriber, audio, out_dir):
    """Runs the command and returns what it printed. Its lines are shown as they come, so that a log
    that is followed (and a limit on silence) sees progress."""
    environment = {**os.environ, "AUDIO": str(audio), "OUT_DIR": str(out_dir)}
    printed = []
    with subprocess.Popen(["bash", "-c", transcriber], env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace") as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            printed.append(line)
    if process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        sys.exit(f"transcribe: the transcriber ended with {how}: {transcriber}")
    return "".join(printed)


def transcript_of(out_dir, printed):
    files = sorted(out_dir.rglob("*.txt"))
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(out_dir)) for file in files)
        sys.exit(f"transcribe: the transcriber left {len(files)} .txt files ({names}); one was expected")
    text = files[0].read_text(encoding="utf-8", errors="replace") if files else printed
    if not files and not printed:
        sys.exit("transcribe: the transcriber left no .txt in $OUT_DIR and printed nothing")
    # Silence is a transcript too: an empty one.
    return text.strip() + "\n"


def write_whole(path, text):
    """Writes a file whole or not at all, so that an attempt that is killed leaves no half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transcriber", required=True, help="a line for bash that uses $AUDIO and $OUT_DIR")
    parser.add_argument("--audio", required=True, type=Path)
    parser.add_argument("--transcript", required=True, type=Path, help="the file to write")
    arguments = parser.parse_args()
    audio = arguments.audio.absolute()
    if not audio.is_file():
        sys.exit(f"transcribe: {audio} is not there")
    arguments.transcript.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="transcribe-") as out_dir:
        printed = run(arguments.transcriber, audio, out_dir)
        text = transcript_of(Path(out_dir), printed)
    about = {
        "audio": str(arguments.audio),
        "bytes": audio.stat().st_size,
        "transcriber": arguments.transcriber,
        "seconds": round(time.monotonic() - begun, 3),
        "words": len(text.split()),
        "agent": os.environ.get("RIGOR_AGENT"),
    }
    write_whole(arguments.transcript.with_suffix(".json"), json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    write_whole(arguments.transcript, text)


if __name__ == "__main__":
    main()
