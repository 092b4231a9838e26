"""Write examples/handbook_questions.jsonl from questions.yaml, where every gold span is an exact quote of its document.

`python tools/handbook/build_questions.py` rewrites the file, with `--check` it only says whether the file is what it
would write. A quote must stand exactly once in its document; a run of white space in a quote matches any run of white
space, so that quotes of hard-wrapped text are written on one line. Offsets count characters of the document as read
with `newline=""` in UTF-8. Quotes come from .md and .txt documents only: what a reader makes of .html differs from
the file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tools" / "handbook" / "questions.yaml"
CORPUS = ROOT / "examples" / "handbook"
QUESTIONS = ROOT / "examples" / "handbook_questions.jsonl"
KINDS = ("plain", "paraphrase", "two", "exception")


class QuoteError(ValueError):
    """A question of the source that can't be resolved."""


def locate(quote: str, text: str) -> tuple[int, int]:
    """Return the one place [start, end) of a quote in a text.

    Raises:
        QuoteError: The quote stands nowhere, or more than once.
    """
    pattern = r"\s+".join(re.escape(word) for word in quote.split())
    found = [match.span() for match in re.finditer(f"(?={pattern})", text)] if pattern else []
    if len(found) != 1:
        raise QuoteError(f"stands {len(found)} times in the document, must stand once: {quote!r}")
    start = found[0][0]
    match = re.compile(pattern).match(text, start)
    assert match is not None
    return start, match.end()


def resolve(entry: dict[str, Any], corpus: Path) -> dict[str, Any]:
    """Return the row of one entry of the source.

    Raises:
        QuoteError: Its kind is unknown, a field is no text, a document is missing or not .md or .txt, or a quote can't be located.
    """
    if entry["kind"] not in KINDS:
        raise QuoteError(f"{entry['id']}: kind {entry['kind']!r} is not one of {', '.join(KINDS)}")
    if entry["kind"] == "two" and len(entry["spans"]) < 2:
        raise QuoteError(f"{entry['id']}: kind 'two' needs two spans, has {len(entry['spans'])}")
    for key in ("id", "question", "answer"):
        if not isinstance(entry[key], str):  # YAML reads 15:00 as a number
            raise QuoteError(f"{entry['id']}: {key} is {entry[key]!r}, write it in quotes")
    spans = []
    for document, quote in entry["spans"]:
        path = corpus / document
        if path.suffix not in (".md", ".txt") or not path.is_file():
            raise QuoteError(f"{entry['id']}: {document} is not a .md or .txt document of {corpus.name}/")
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
        try:
            start, end = locate(quote, text)
        except QuoteError as error:
            raise QuoteError(f"{entry['id']}, {document}: {error}") from None
        spans.append({"document": document, "start": start, "end": end, "text": text[start:end]})
    return {
        "id": entry["id"],
        "question": entry["question"],
        "answer": entry["answer"],
        "spans": spans,
        "documents": sorted({span["document"] for span in spans}),
    }


def lines(source: Path = SOURCE, corpus: Path = CORPUS) -> str:
    """Return the whole JSONL text.

    Raises:
        QuoteError: All faults of the source, one a line.
    """
    rows, faults, seen = [], [], set()
    for entry in yaml.safe_load(source.read_text(encoding="utf-8")):
        if entry["id"] in seen:
            faults.append(f"{entry['id']}: stands twice")
        seen.add(entry["id"])
        try:
            rows.append(json.dumps(resolve(entry, corpus), ensure_ascii=False))
        except QuoteError as error:
            faults.append(str(error))
    if faults:
        raise QuoteError("\n".join(faults))
    return "".join(row + "\n" for row in rows)


def main() -> int:
    """Write the questions, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the file would change")
    arguments = parser.parse_args()
    try:
        text = lines()
    except QuoteError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.check:
        if QUESTIONS.read_bytes() == text.encode():
            return 0
        print(f"{QUESTIONS.name} is stale: run python tools/handbook/build_questions.py", file=sys.stderr)
        return 1
    QUESTIONS.write_bytes(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
