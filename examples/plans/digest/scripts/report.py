"""Puts measures and tags together: output/report.md for people, output/index.json for programs."""

import argparse
import json
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import document

BAR_WIDTH = 30
LONGEST_SHOWN = 15
TAGS_SHOWN = 70
# Flesch's own steps.
EASE_STEPS = [(60, "60 and over: plain"), (50, "50 to 60: fairly difficult"), (30, "30 to 50: difficult"),
              (None, "under 30: very difficult")]


def completed(batch_dir):
    """What the brain wrote of each task that completed, by the task's name. Without the file the
    report lacks only who did what."""
    found = {}
    try:
        lines = (batch_dir / "batch_events.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "completed":
            found[event.get("name")] = event
    return found


def gather(manifest, batch_dir, events):
    """Every document of the manifest with what is there of it."""
    entries = []
    for item in manifest["documents"]:
        measures = tags = None
        try:
            measures = json.loads((batch_dir / f"output/measures/{item['id']}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            pass
        try:
            tags = (batch_dir / f"output/tags/{item['id']}.txt").read_text(encoding="utf-8", errors="replace")
            tags = " ".join("".join(c if c.isprintable() else " " for c in tags).split())
        except OSError:
            pass
        tagged = events.get(f"tag_{item['id']}", {})
        entries.append({
            **item,
            "measures": measures,
            "tags": tags,
            "tagged_by": tagged.get("agent") if tags is not None else None,
            "model": tagged.get("model") if tags is not None else None,
        })
    return entries


def totals(entries):
    measured = [entry["measures"] for entry in entries if entry["measures"]]
    ease = [measures["flesch"] for measures in measured if measures["flesch"] is not None]
    code = sum(measures["code_lines"] for measures in measured)
    prose = sum(measures["prose_lines"] for measures in measured)
    return {
        "documents": len(entries),
        "measured": len(measured),
        "tagged": sum(entry["tags"] is not None for entry in entries),
        "bytes": sum(entry["bytes"] for entry in entries),
        "words": sum(measures["words"] for measures in measured),
        "sentences": sum(measures["sentences"] for measures in measured),
        "prose_lines": prose,
        "code_lines": code,
        "code_share": round(code / (code + prose), 3) if code + prose else 0.0,
        "mean_flesch": round(sum(ease) / len(ease), 1) if ease else None,
    }


def frequent_terms(entries, most):
    """Terms over all documents, by how often they stand among a document's most frequent."""
    counts, documents = Counter(), Counter()
    for entry in entries:
        for top in (entry["measures"] or {}).get("top_terms", []):
            counts[top["term"]] += top["count"]
            documents[top["term"]] += 1
    ordered = sorted(counts, key=lambda term: (-counts[term], term))[:most]
    return [{"term": term, "count": counts[term], "documents": documents[term]} for term in ordered]


def is_random(model):
    """Whether a model's id says that its weights are random, as the demo's do."""
    return "random" in model.lower()


def cell(text, most=None):
    """Text that changes nothing of the table it stands in."""
    text = str(text)
    if most and len(text) > most:
        text = text[:most - 1].rstrip() + "…"
    for mark in "\\`*_[]<>|#~&":
        text = text.replace(mark, "\\" + mark)
    return text


def number(value):
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def bars(rows):
    """A chart of (label, value) in text: one bar a row, the longest value the whole width."""
    widest = max((len(label) for label, _ in rows), default=0)
    largest = max((value for _, value in rows), default=0)
    lines = []
    for label, value in rows:
        length = round(value / largest * BAR_WIDTH) if largest else 0
        bar = "█" * max(length, 1 if value else 0)
        lines.append(f"{label:<{widest}}  {bar:<{BAR_WIDTH}}  {value:,}")
    return ["```text", *lines, "```", ""]


def model_lines(entries, sums):
    """Who answered, and what that is worth."""
    models = Counter(entry["model"] for entry in entries if entry["model"])
    unnamed = sum(entry["tags"] is not None and not entry["model"] for entry in entries)
    if not sums["tagged"]:
        return ["No document was tagged: no model answered.", ""]
    named = ", ".join(f"`{model}` ({count} documents)" for model, count in sorted(models.items()))
    lines = [f"Tags by model: {named or 'not recorded'}" + (f"; {unnamed} not recorded" if named and unnamed else "") + ".", ""]
    if any(is_random(model) for model in models):
        lines += ["> **These tags mean nothing.** The model that answered has random weights: it shows that the rig",
                  "> works, not what the documents are about. All other columns are computed from the documents.", ""]
    return lines


def render(batch, manifest, entries, sums, terms, events, now):
    read_ease = number(sums["mean_flesch"])
    lines = [
        f"# Digest of {sums['documents']} documents",
        "",
        f"Batch `{batch}`, {now:%Y-%m-%d %H:%M} UTC, from `{manifest['docs']}` (`{', '.join(manifest['glob'])}`).",
        "",
        *model_lines(entries, sums),
        "## Totals",
        "",
        "| documents | measured | tagged | words | sentences | prose lines | code lines | code share | mean reading ease |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        f"| {sums['documents']} | {sums['measured']} | {sums['tagged']} | {sums['words']:,} | {sums['sentences']:,} "
        f"| {sums['prose_lines']:,} | {sums['code_lines']:,} | {sums['code_share']:.0%} | {read_ease} |",
        "",
        "## Documents",
        "",
        "| document | title | words | words per sentence | reading ease | code | frequent terms | tags |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for entry in entries:
        measures = entry["measures"]
        tags = "*not tagged*" if entry["tags"] is None else cell(entry["tags"], TAGS_SHOWN) or "*empty answer*"
        if measures:
            top = ", ".join(cell(top["term"]) for top in measures["top_terms"][:4])
            middle = (f"{measures['words']:,} | {number(measures['words_per_sentence'])} | {number(measures['flesch'])} "
                      f"| {measures['code_share']:.0%} | {top}")
        else:
            middle = "*not measured* | – | – | – | –"
        lines.append(f"| {cell(entry['name'])} | {cell(entry['title'])} | {middle} | {tags} |")
    lines += [
        "",
        "Reading ease is Flesch's: 206.835 − 1.015 × words per sentence − 84.6 × syllables per word (English; 60 is plain,",
        "30 difficult). It is left out under 100 words of prose. Words are counted in prose and comments, not in code.",
        "",
    ]
    if manifest["skipped"]:
        lines += ["Skipped:", ""]
        lines += [f"- {cell(entry['name'])}: {cell(entry['reason'])}" for entry in manifest["skipped"]] + [""]
    measured = [entry for entry in entries if entry["measures"]]
    if measured:
        longest = sorted(measured, key=lambda entry: (-entry["measures"]["words"], entry["name"]))[:LONGEST_SHOWN]
        lines += ["## Longest documents", "", "Words.", ""]
        lines += bars([(entry["name"], entry["measures"]["words"]) for entry in longest])
        lines += ["## Reading ease", "", "Documents.", ""] + bars(ease_steps(measured))
    if terms:
        lines += ["## Frequent terms", "", "How often, where they are among the most frequent of a document.", ""]
        lines += bars([(f"{entry['term']} ({entry['documents']} documents)", entry["count"]) for entry in terms])
    lines += who_did_what(events)
    return "\n".join(lines).rstrip() + "\n"


def ease_steps(measured):
    counts = Counter()
    for entry in measured:
        ease = entry["measures"]["flesch"]
        if ease is None:
            counts["too short"] += 1
            continue
        counts[next(label for least, label in EASE_STEPS if least is None or ease >= least)] += 1
    labels = [label for _, label in EASE_STEPS] + ["too short"]
    return [(label, counts[label]) for label in labels if counts[label]]


def who_did_what(events):
    if not events:
        return []
    measured, tagged, seconds = Counter(), Counter(), Counter()
    for name, event in events.items():
        agent = event.get("agent") or "?"
        measured[agent] += name.startswith("measure_")
        tagged[agent] += name.startswith("tag_")
        seconds[agent] += event.get("seconds") or 0
    lines = ["## Who did what", "", "| agent | documents measured | documents tagged | busy, seconds (tasks at the same time count each) |",
             "|---|---:|---:|---:|"]
    for agent in sorted(seconds):
        lines.append(f"| {cell(agent)} | {measured[agent]} | {tagged[agent]} | {seconds[agent]:,.1f} |")
    return lines + [""]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", required=True, help="the batch's id")
    parser.add_argument("--batch-dir", required=True, type=Path, help="the batch's folder")
    parser.add_argument("--terms", type=int, default=12, help="how many frequent terms to list")
    arguments = parser.parse_args()
    output = arguments.batch_dir / "output"
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    events = completed(arguments.batch_dir)
    entries = gather(manifest, arguments.batch_dir, events)
    sums = totals(entries)
    terms = frequent_terms(entries, arguments.terms)
    models = sorted({entry["model"] for entry in entries if entry["model"]})
    now = datetime.now(timezone.utc)
    index = {
        "schema": 1,
        "batch": arguments.batch,
        "made": now.isoformat(timespec="seconds"),
        "docs": manifest["docs"],
        "glob": manifest["glob"],
        "models": models,
        "random_weights": any(is_random(model) for model in models),
        "totals": sums,
        "frequent_terms": terms,
        "documents": entries,
        "skipped": manifest["skipped"],
    }
    document.write_whole(output / "index.json", json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    report = render(arguments.batch, manifest, entries, sums, terms, events, now)
    document.write_whole(output / "report.md", report)
    print(f"{output / 'report.md'}: {sums['documents']} documents, {sums['measured']} measured, {sums['tagged']} tagged"
          f" by {', '.join(models) or 'no recorded model'}")


if __name__ == "__main__":
    main()
