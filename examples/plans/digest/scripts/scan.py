"""Lists the documents of a folder: output/manifest.json, and output/heads/<id>.txt for the model."""

import argparse
import fnmatch
import hashlib
import json
import os
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import document

# Folders that hold what programs made.
GENERATED = {"target", "node_modules", "history", "__pycache__", "build", "dist"}
# In bytes, because a small model's tokenizer may take each byte for a token.
HEAD_BYTES = 1000
ID_MAX = 80


def find(root, patterns):
    """Files that match any of the patterns, relative to the root, sorted. Hidden and generated
    folders are not entered: a build folder has more files than all documents."""
    wanted = [pattern.strip("/").split("/") for pattern in patterns]
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in GENERATED]
        for name in files:
            relative = os.path.relpath(os.path.join(folder, name), root)
            parts = relative.split("/")
            if not name.startswith(".") and any(matches(parts, pattern) for pattern in wanted):
                found.append(relative)
    return sorted(found)


def matches(parts, pattern):
    """Whether a path matches a pattern, both cut at their slashes; `**` stands for any folders."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return matches(parts, pattern[1:]) or matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def slug(name):
    """An id that is safe in a file name: ASCII letters, digits, `.`, `_` and `-`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.")


def identify(names):
    """A unique id for each name: its slug, with a hash of the name where slugs are equal, empty or
    too long."""
    slugs = [slug(name) for name in names]
    # Some file systems take `A` and `a` for the same name.
    times = Counter(text.lower() for text in slugs)
    ids = {}
    for name, text in zip(names, slugs):
        if not text or len(text) > ID_MAX or times[text.lower()] > 1:
            digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
            text = f"{text[:ID_MAX - 9]}-{digest}".lstrip("-")
        ids[name] = text
    return ids


def scan(root, patterns, output):
    documents, skipped = [], []
    names = find(root, patterns)
    ids = identify(names)
    for name in names:
        path = os.path.join(root, name)
        try:
            name.encode("utf-8")
            text = document.read(path)
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode("utf-8", "replace")
            skipped.append({"name": shown, "reason": "its name is not UTF-8"})
            continue
        except document.Unreadable as reason:
            skipped.append({"name": name, "reason": str(reason)})
            continue
        suffix = Path(name).suffix.lower()
        document.write_whole(output / "heads" / f"{ids[name]}.txt", document.head(text, suffix, HEAD_BYTES))
        documents.append({
            "id": ids[name],
            "path": path,
            "name": name,
            "title": document.title(text, name),
            "bytes": os.path.getsize(path),
        })
    return {"schema": 1, "docs": root, "glob": patterns, "documents": documents, "skipped": skipped}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", required=True, help="the folder")
    parser.add_argument("--glob", required=True, help="patterns, separated by commas")
    parser.add_argument("--output", required=True, type=Path, help="the batch's output folder")
    arguments = parser.parse_args()
    root = os.path.expanduser(arguments.docs)
    patterns = [pattern.strip() for pattern in arguments.glob.split(",") if pattern.strip()]
    if not os.path.isdir(root):
        sys.exit(f"scan: DOCS {root!r} is not a folder (a relative path counts from the plan's folder)")
    manifest = scan(root, patterns, arguments.output)
    if not manifest["documents"]:
        sys.exit(f"scan: no document in {root!r} matches {', '.join(patterns)}; set GLOB, for example GLOB='**/*.txt'")
    document.write_whole(arguments.output / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(manifest['documents'])} documents in {root}, {len(manifest['skipped'])} skipped")
    for entry in manifest["skipped"]:
        print(f"skipped {entry['name']}: {entry['reason']}")


if __name__ == "__main__":
    main()
