"""Small pictures in text, and text that is safe on a terminal: sparklines, bars, and clipping by cells.

A terminal counts in cells: a Chinese character takes two, a combining mark none. Whatever comes from users or from
libraries goes through `clean` first, so that it can neither move the cursor nor reorder a line.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from rich.cells import get_character_cell_size

Part = tuple[str, str]
"""(text, style): a style is words of `sweeps.terminal.STYLES`, or empty."""
Line = tuple[Part, ...]
MARKS = 3
"""Combining marks that a character keeps."""
_FLAGS = range(0x1F1E6, 0x1F200)
_SKIN = range(0x1F3FB, 0x1F400)
"""Letters of flags and tones of skin: terminals disagree about the width of what they make with their neighbours."""


@dataclass(frozen=True)
class Charset:
    """What a terminal can show.

    Attributes:
        levels: of a sparkline, from low to high.
        gap: a value that is NaN.
        done, ahead, rest: of a progress bar.
        best, runs: marks before a row.
        slot, free: a slot in use and a free one.
        cut: ends a text that was cut.
        dot: between items of a line.
        down, up: lower is better, higher is better.
        error: plus-minus.
        dash: of a range.
        rule: a line across.
    """

    levels: str
    gap: str
    done: str
    ahead: str
    rest: str
    best: str
    runs: str
    slot: str
    free: str
    cut: str
    dot: str
    down: str
    up: str
    error: str
    dash: str
    rule: str


UNICODE = Charset("▁▂▃▄▅▆▇█", "×", "━", "╌", "·", "★", "▸", "■", "□", "…", "·", "↓", "↑", "±", "–", "─")
ASCII = Charset("_.-=+*#", "x", "#", "-", ".", "*", ">", "#", ".", "~", "|", "(low)", "(high)", "+-", "-", "-")


def clean(text: str, *, lines: bool = False) -> str:
    """The text without anything that a terminal would obey: controls, escapes, bidirectional and invisible characters.

    Args:
        text: from anywhere.
        lines: keep line ends and tabs.
    """
    if text.isascii() and text.isprintable():
        return text
    return _cleaned(text, lines)


@lru_cache(4096)
def _cleaned(text: str, lines: bool) -> str:
    kept: list[str] = []
    marks = 0
    for char in unicodedata.normalize("NFC", text):
        if lines and char in "\n\t":
            kept.append(char)
            marks = 0
            continue
        if char.isascii():
            marks = 0
            kept.append(char if " " <= char <= "~" else " " if char in "\t\n\r" else "?")
            continue
        kind = unicodedata.category(char)
        if kind in ("Mn", "Me"):
            marks += 1
            if marks <= MARKS and kept:
                kept.append(char)
            continue
        marks = 0
        if kind == "Cf" or ord(char) in _SKIN:
            continue
        unshown = kind in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp") or ord(char) in _FLAGS
        kept.append("?" if unshown else char)
    return "".join(kept)


def cells(text: str) -> int:
    """Cells that a cleaned text takes."""
    return len(text) if text.isascii() else _cells(text)


@lru_cache(4096)
def _cells(text: str) -> int:
    return sum(map(_width, text))


def _width(char: str) -> int:
    return 0 if unicodedata.combining(char) else get_character_cell_size(char)


def clip(text: str, width: int, cut: str = "…") -> str:
    """A cleaned text within `width` cells; one that is too long ends with `cut`."""
    if cells(text) <= width:
        return text
    room = width - cells(cut)
    if room < 0:
        return ""
    taken, used = [], 0
    for char in text:
        used += _width(char)
        if used > room:
            break
        taken.append(char)
    return "".join(taken) + cut


def fit(text: str, width: int, cut: str = "…", *, right: bool = False) -> str:
    """`clip`, filled up with blanks to exactly `width` cells, on the left where `right`."""
    clipped = clip(text, width, cut)
    blanks = " " * (width - cells(clipped))
    return blanks + clipped if right else clipped + blanks


def sparkline(values: Sequence[float], width: int, low: float, high: float, charset: Charset = UNICODE) -> str:
    """Values as levels between low and high; what is outside sits at the edge, NaN is a gap.

    More values than `width` are averaged in bins; a bin with a NaN is a gap, so that none goes unseen.
    """
    if not values or width < 1:
        return ""
    span = high - low
    top = len(charset.levels) - 1
    shown = []
    for value in _binned(values, width):
        if math.isnan(value):
            shown.append(charset.gap)
            continue
        part = (
            (value - low) / span if span > 0 and math.isfinite(value) else (0.5 if value == low else float(value > low))
        )
        shown.append(charset.levels[round(top * min(1.0, max(0.0, part)))])
    return "".join(shown)


def _binned(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def bar(done: float, ahead: float, width: int, charset: Charset = UNICODE) -> Line:
    """A bar of `width` cells: the done part, the part under way, the rest; parts are shares of the whole (0 to 1)."""
    share = min(1.0, max(0.0, done))
    first = int(width * share)
    second = max(first, math.ceil(width * min(1.0, ahead))) if ahead > share else first
    parts = (
        (charset.done, first, "cyan"),
        (charset.ahead, second - first, "cyan"),
        (charset.rest, width - second, "dim"),
    )
    return tuple((sign * count, style) for sign, count, style in parts if count)


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Low and high for sparklines that share a scale: the 5th and 95th percentile of the finite values."""
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return 0.0, 0.0
    last = len(finite) - 1
    return finite[math.floor(0.05 * last)], finite[math.ceil(0.95 * last)]
