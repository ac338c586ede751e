"""A stand-in for a transcriber: it recognises nothing. Prints what stands in the .txt beside the
recording, else how long the recording is, and says STAND-IN first in either case."""

import argparse
import sys
import wave
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audio", type=Path)
    audio = parser.parse_args().audio
    if not audio.is_file():
        sys.exit(f"stand_in_transcriber: {audio} is not there")
    beside = audio.with_suffix(".txt")
    if beside.is_file():
        print(f"STAND-IN (the text beside the recording): {beside.read_text(encoding='utf-8').strip()}")
        return
    try:
        with wave.open(str(audio)) as recording:
            length = f"{recording.getnframes() / recording.getframerate():.1f} seconds of sound"
    except (wave.Error, EOFError):
        length = f"{audio.stat().st_size} bytes"
    print(f"STAND-IN: {length}, of which no word was recognised.")


if __name__ == "__main__":
    main()
