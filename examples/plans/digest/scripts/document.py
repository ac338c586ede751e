"""A document as text: which of its lines are prose and which are code, and counting in the prose."""

import os
import re
import stat
import tempfile
from collections import Counter
from pathlib import Path

# Larger files are data, not documents.
MAX_BYTES = 8 * 1024 * 1024

# What marks a comment, by the file's suffix. A suffix that stands in neither table is plain text.
LINE_COMMENTS = {".rs": ("//!", "///", "//"), ".c": ("//",), ".h": ("//",), ".go": ("//",), ".js": ("//",),
                 ".ts": ("//",), ".py": ("#",), ".sh": ("#",), ".toml": ("#",), ".yaml": ("#",), ".yml": ("#",)}
MARKDOWN = {".md", ".markdown"}

STOP_WORDS = frozenset("""
a about above after again all also although an and another any are as at be because been before being below between both
but by can cannot could did do does doing done down each either else even ever every few first for from further get gets
give given goes had has have having he her here hers him his how however if in into is it its itself just last least less
let like made make makes many may me might more most much must my neither never next no none nor not nothing now of off on
once one only onto or other others our out over own per put rather s said same say says see shall she should since so some
such take takes than that the their them then there these they this those though three through to together too two under
until up upon us use used uses using very was way we well were what when where whether which while who whole whom whose why
will with within without would yes yet you your
""".split())

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# A sentence ends with . ! or ? before white space or the end; a list item or a paragraph ends one too.
SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"')\]]|$)")


class Unreadable(Exception):
    """Why a file is not a document; the text is for people."""


def read(path):
    """The text of a document. Bytes that are not UTF-8 become U+FFFD."""
    path = Path(path)
    try:
        meta = path.stat()
        if not stat.S_ISREG(meta.st_mode):
            raise Unreadable("not a regular file")
        if meta.st_size > MAX_BYTES:
            raise Unreadable(f"{meta.st_size} bytes; at most {MAX_BYTES} are read")
        raw = path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    if b"\0" in raw:
        raise Unreadable("a NUL byte: not a text file")
    return raw.decode("utf-8", errors="replace").removeprefix("\ufeff")


def split(text, suffix):
    """Prose paragraphs (lists of lines without their markup), and the numbers of non-blank prose
    and code lines."""
    if suffix in MARKDOWN:
        return _split_markdown(text)
    if suffix in LINE_COMMENTS:
        return _split_source(text, LINE_COMMENTS[suffix])
    return _split_plain(text)


def _split_markdown(text):
    paragraphs, current, code = [], [], 0
    fence = None
    text = re.sub(r"<!--.*?-->", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.S)
    for line in text.splitlines():
        body = line.strip()
        mark = re.match(r"(`{3,}|~{3,})", body)
        if fence:
            code += bool(body)
            if mark and body == mark[1] and body.startswith(fence):
                fence = None
            continue
        if mark and "`" not in body[len(mark[1]):]:
            fence = mark[1]
            code += 1
            continue
        if re.fullmatch(r"[-=|:\s*_]*", body):
            # Blank, a rule, or the line under a table's head.
            if current:
                paragraphs.append(current)
            current = []
            continue
        if re.match(r"(#{1,6}\s|[-*+]\s|\d+[.)]\s|\||>)", body):
            # A heading, a list item, a table row or a quotation is a paragraph of its own.
            if current:
                paragraphs.append(current)
            current = []
        current.append(_without_markup(body))
    if current:
        paragraphs.append(current)
    return paragraphs, sum(len(paragraph) for paragraph in paragraphs), code


def _without_markup(line):
    line = re.sub(r"^(#{1,6}\s+|[-*+]\s+|\d+[.)]\s+|>\s?)+", "", line)
    parts = []
    for part in re.split(r"(`+[^`]*`+)", line):
        if part.startswith("`"):
            # Code within a sentence stays, as the word that it stands for.
            parts.append(part.strip("`"))
            continue
        part = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", part)
        part = re.sub(r"</?[A-Za-z][^<>]*>", " ", part)
        parts.append(part.replace("**", "").replace("|", " "))
    return "".join(parts).strip()


def _split_source(text, marks):
    paragraphs, current, code, prose = [], [], 0, 0
    for line in text.splitlines():
        body = line.strip()
        mark = next((mark for mark in marks if body.startswith(mark)), None)
        comment = body[len(mark):].strip() if mark and not body.startswith("#!") else None
        if comment:
            current.append(_without_markup(comment))
            prose += 1
            continue
        if current:
            paragraphs.append(current)
        current = []
        if comment is None:
            code += bool(body)
    if current:
        paragraphs.append(current)
    return paragraphs, prose, code


def _split_plain(text):
    blocks = re.split(r"\n\s*\n", text)
    paragraphs = [[line.strip() for line in block.splitlines() if line.strip()] for block in blocks]
    paragraphs = [paragraph for paragraph in paragraphs if paragraph]
    return paragraphs, sum(len(paragraph) for paragraph in paragraphs), 0


def title(text, path):
    """The first heading, or the first line of prose of a source, or the file's name."""
    path = Path(path)
    paragraphs, _, _ = split(text, path.suffix.lower())
    if path.suffix.lower() in MARKDOWN:
        fenced = False
        for line in text.splitlines():
            fenced ^= line.lstrip().startswith("```")
            if not fenced and (heading := re.match(r"#\s+(.+)", line)):
                return _without_markup(heading[1].strip().rstrip("#"))[:80] or path.name
    elif path.suffix.lower() in LINE_COMMENTS and paragraphs:
        return re.split(r"(?<=[.:])\s", paragraphs[0][0])[0].rstrip(".:")[:80] or path.name
    return path.name


def head(text, suffix, limit_bytes):
    """The beginning of the prose (of everything, where there is no prose), at most so many bytes of
    UTF-8, ending with a whole character."""
    paragraphs, _, _ = split(text, suffix)
    prose = "\n".join(" ".join(paragraph) for paragraph in paragraphs) or text
    return prose.encode("utf-8")[:limit_bytes].decode("utf-8", errors="ignore").strip() + "\n"


def syllables(word):
    """An estimate for English: groups of vowels, without a silent e at the end; at least one."""
    word = re.sub(r"['’].*", "", word.lower())
    groups = len(re.findall(r"[aeiouyäöüéèêáàâíóôúû]+", word))
    if word.endswith("e") and not word.endswith(("le", "ee")) and groups > 1:
        groups -= 1
    return max(1, groups)


def measure(text, suffix, terms):
    """The measures of a document; see the fields of the result."""
    paragraphs, prose_lines, code_lines = split(text, suffix)
    word_count = sentence_count = syllable_count = 0
    frequencies = Counter()
    for paragraph in paragraphs:
        paragraph = " ".join(paragraph)
        words = WORD.findall(paragraph)
        if not words:
            continue
        word_count += len(words)
        ends = [match.end() for match in SENTENCE_END.finditer(paragraph)]
        # What follows the last full stop is a sentence too (a heading, a list item).
        rest = paragraph[ends[-1]:] if ends else paragraph
        sentence_count += len(ends) + bool(WORD.search(rest))
        syllable_count += sum(syllables(word) for word in words)
        frequencies.update(
            word for word in (re.sub(r"['’].*", "", word.lower()) for word in words)
            if len(word) > 2 and word not in STOP_WORDS)
    # Ties in alphabetical order, so that equal documents give equal results.
    top = sorted(frequencies.items(), key=lambda entry: (-entry[1], entry[0]))[:terms]
    lines = prose_lines + code_lines
    return {
        "words": word_count,
        "sentences": sentence_count,
        "syllables": syllable_count,
        "words_per_sentence": round(word_count / sentence_count, 1) if sentence_count else None,
        "flesch": flesch(word_count, sentence_count, syllable_count),
        "prose_lines": prose_lines,
        "code_lines": code_lines,
        "code_share": round(code_lines / lines, 3) if lines else 0.0,
        "distinct_terms": len(frequencies),
        "top_terms": [{"term": term, "count": count} for term, count in top],
    }


def flesch(words, sentences, syllable_count):
    """Flesch's reading ease (R. Flesch, A new readability yardstick, 1948), made for English:
    206.835 - 1.015 words/sentence - 84.6 syllables/word. 100 is very easy, 60 plain, 30 hard.
    None under 100 words, the size of the samples it was made with."""
    if words < 100 or not sentences:
        return None
    return round(206.835 - 1.015 * words / sentences - 84.6 * syllable_count / words, 1)


def write_whole(path, text):
    """Writes a file whole or not at all, so that an attempt that is killed leaves no half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
