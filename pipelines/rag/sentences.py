r"""Where sentences end: a few rules over characters, no model, the same for every chunker.

A sentence ends

- after `.`, `!`, `?` or an ellipsis, with the quotes and brackets that close behind it, before a blank; not after an
  abbreviation (`Dr.`, `e.g.`), an initial (`J. Smith`), or the number of a list's item (`1. Pay`),
- after the full stops of Chinese and Japanese, with or without a blank,
- at a blank line, a form feed, a paragraph separator,
- before a line that begins as Markdown's headings, items, table rows, quotes and fences do, and after a heading or a row;
  nowhere within a row.

Blanks after a sentence belong to it, so that sentences tile their text. Left out: languages that end sentences otherwise,
and whatever of Markdown is not seen at the beginning of a line.

Example:
    >>> text = "Dr. Who paid 3.5 euros. He left."
    >>> [text[start:end] for start, end in sentences(text)]
    ['Dr. Who paid 3.5 euros. ', 'He left.']
"""

from __future__ import annotations

import re
from itertools import pairwise

ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "sr",
        "jr",
        "vs",
        "fig",
        "figs",
        "eq",
        "eqs",
        "sec",
        "nos",
        "vol",
        "pp",
        "eds",
        "cf",
        "approx",
        "dept",
        "est",
        "inc",
        "ltd",
        "corp",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
        "gen",
        "col",
        "sgt",
        "capt",
        "lt",
        "rev",
        "gov",
        "sen",
        "e.g",
        "i.e",
        "u.s",
        "u.k",
        "a.m",
        "p.m",
        "ca",
        "bzw",
        "usw",
        "z.b",
        "d.h",
        "u.a",
        "nr",
    ]
)
_CLOSING = "\"'\u00bb\u201c\u201d\u2019)\\]}*_"
_MARK = r"[^\S\n]*(?:#{1,6}\s|\||[-*+\u2022]\s|\d{1,3}[.)]\s|>|```|~~~)"
_BREAKS = (
    re.compile(r"\n[^\S\n]*\n\s*|[\f\u2029]\s*"),
    re.compile(rf"\n(?={_MARK})"),
    re.compile(r"^[^\S\n]*(?:#{1,6}\s|\|)[^\n]*\n", re.MULTILINE),
    re.compile(rf"[\u3002\uff01\uff1f]+[{_CLOSING}\u300d\u300f\uff09]*\s*"),
)
"""What ends a sentence wherever it stands."""
_ROW = re.compile(r"^[^\S\n]*\|[^\n]*", re.MULTILINE)
_STOP = re.compile(rf"(?<![.!?\u2026\u061f\u06d4\u0964])([.!?\u2026\u061f\u06d4\u0964]+)[{_CLOSING}]*\s+")
_WORD = re.compile(r"[^\W_][\w.]*\Z")
_ITEM = re.compile(r"(?:\A|\n)[^\S\n]*\Z")
_LONGEST_WORD = 24


def sentences(text: str) -> list[tuple[int, int]]:
    """Ranges of the sentences of a text, in order; they tile it, and none is blank unless the text is."""
    edges = {found.end() for pattern in _BREAKS for found in pattern.finditer(text)}
    prose = _ROW.sub(lambda row: "|" * len(row[0]), text)
    edges |= {found.end() for found in _STOP.finditer(prose) if found[1] != "." or _ends(text, found.start())}
    ranges: list[tuple[int, int]] = []
    for start, end in pairwise(sorted(edges | {0, len(text)})):
        if ranges and not text[start:end].strip():
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    if len(ranges) > 1 and not text[: ranges[0][1]].strip():
        ranges[:2] = [(0, ranges[1][1])]
    return ranges


def _ends(text: str, stop: int) -> bool:
    """Whether the full stop here ends more than a word."""
    word = _WORD.search(text, max(0, stop - _LONGEST_WORD), stop)
    if word is None:
        return True
    plain = word[0]
    if plain.isdigit():
        return _ITEM.search(text, max(0, word.start() - _LONGEST_WORD), word.start()) is None
    return plain.lower() not in ABBREVIATIONS and not (len(plain) == 1 and plain.isupper())
