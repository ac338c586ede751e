"""Puts recordings, transcripts and topics together: output/index.md for people, output/index.json for programs."""

import argparse
import json
import os
from pathlib import Path

STAND_IN = "STAND-IN"
BEGINNING_SHOWN = 90
TOPICS_SHOWN = 80


def read(path):
    """The text of a file on one line; none where it is not there."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def models_by_task(batch_dir):
    """Which model answered each task, as the brain wrote it in the course of the batch."""
    models = {}
    try:
        lines = (batch_dir / "batch_events.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return models
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "completed" and event.get("model"):
            models[event.get("name")] = event["model"]
    return models


def failed_ids(files):
    """The ids in the lists of failed items; a list that was not written is empty."""
    ids = set()
    for file in files:
        if file.is_file():
            ids.update(json.loads(line)["id"] for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    return ids


def gather(batch_dir, failed):
    transcripts = batch_dir / "output/transcripts"
    ids = {path.name.removesuffix(".txt") for path in transcripts.glob("*.txt") if not path.name.startswith(".")}
    models = models_by_task(batch_dir)
    entries = []
    for item in sorted(ids | failed):
        try:
            about = json.loads((transcripts / f"{item}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            about = {}
        transcript = read(transcripts / f"{item}.txt")
        entries.append({
            "id": item,
            "audio": about.get("audio"),
            "words": None if transcript is None else len(transcript.split()),
            "transcript": transcript,
            "transcriber": about.get("transcriber"),
            "transcribed_by": about.get("agent"),
            "seconds": about.get("seconds"),
            "stand_in": transcript is not None and transcript.startswith(STAND_IN),
            "topics": read(batch_dir / f"output/topics/{item}.txt"),
            "model": models.get(f"topics_{item}"),
        })
    return entries


def cell(text, most=None):
    """Text that changes nothing of the table it stands in."""
    if most and len(text) > most:
        text = text[:most - 1].rstrip() + "…"
    for mark in "\\`*_[]<>|#~&":
        text = text.replace(mark, "\\" + mark)
    return text


def render(batch, audio, entries):
    models = sorted({entry["model"] for entry in entries if entry["model"]})
    transcribed = sum(entry["transcript"] is not None for entry in entries)
    answered = sum(entry["topics"] is not None for entry in entries)
    lines = [
        f"# {len(entries)} recordings",
        "",
        f"Batch `{batch}`, recordings of `{audio}`: {transcribed} transcribed, {answered} with topics.",
        "Topics by model: " + (", ".join(f"`{model}`" for model in models) or "not recorded") + ".",
        "",
    ]
    if stand_ins := sum(entry["stand_in"] for entry in entries):
        lines += [f"> **No speech was recognised** in {stand_ins} of them: their transcripts come from the stand-in.", ""]
    if any("random" in model.lower() for model in models):
        lines += ["> **The topics mean nothing.** The model that answered has random weights.", ""]
    lines += ["| recording | words | topics | transcript |", "|---|---:|---|---|"]
    for entry in entries:
        name = cell(Path(entry["audio"]).name if entry["audio"] else entry["id"])
        topics = "*none*" if entry["topics"] is None else cell(entry["topics"], TOPICS_SHOWN) or "*empty answer*"
        if entry["transcript"] is None:
            lines.append(f"| {name} | – | {topics} | *not transcribed* |")
        else:
            beginning = cell(entry["transcript"], BEGINNING_SHOWN) or "*silence*"
            lines.append(f"| {name} | {entry['words']:,} | {topics} | {beginning} |")
    return "\n".join(lines) + "\n"


def write_whole(path, text):
    """Writes a file whole or not at all, so that an attempt that is killed leaves no half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", required=True, help="the batch's id")
    parser.add_argument("--batch-dir", required=True, type=Path, help="the batch's folder")
    parser.add_argument("--audio", required=True, help="the folder of the recordings, to be named")
    parser.add_argument("--failed", action="append", default=[], type=Path, help="a list of failed items")
    arguments = parser.parse_args()
    output = arguments.batch_dir / "output"
    output.mkdir(parents=True, exist_ok=True)
    entries = gather(arguments.batch_dir, failed_ids(arguments.failed))
    index = {"schema": 1, "batch": arguments.batch, "audio": arguments.audio, "recordings": entries}
    write_whole(output / "index.json", json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    write_whole(output / "index.md", render(arguments.batch, arguments.audio, entries))
    transcribed = sum(entry["transcript"] is not None for entry in entries)
    print(f"{output / 'index.md'}: {len(entries)} recordings, {transcribed} transcribed")


if __name__ == "__main__":
    main()
