"""Measures one document: words, sentences, reading ease, share of code, frequent terms."""

import argparse
import json
import sys
from pathlib import Path

import document


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True, type=Path)
    parser.add_argument("--terms", type=int, default=12, help="how many frequent terms to keep")
    parser.add_argument("--output", required=True, type=Path, help="the JSON file to write")
    arguments = parser.parse_args()
    try:
        text = document.read(arguments.path)
    except document.Unreadable as reason:
        sys.exit(f"measure: {arguments.path}: {reason}")
    measures = document.measure(text, arguments.path.suffix.lower(), arguments.terms)
    document.write_whole(arguments.output, json.dumps(measures, indent=1, ensure_ascii=False) + "\n")
    ease = "-" if measures["flesch"] is None else measures["flesch"]
    print(f"{arguments.path}: {measures['words']} words, {measures['sentences']} sentences, "
          f"reading ease {ease}, {measures['code_share']:.0%} code")


if __name__ == "__main__":
    main()
