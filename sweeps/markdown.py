"""Texts of users, data and models inside a Markdown file: whatever they hold, they are shown as they are, in their place.

After CommonMark and its tables: https://spec.commonmark.org/0.31.2/#backslash-escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sweeps.glyphs import clean

_MARKS = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What means something within a line; an underscore between letters does not."""


def escaped(text: str) -> str:
    r"""A text on one line, within a sentence, a heading or a table's cell: no markup, no HTML, no other cell.

    Example:
        >>> escaped("a|b_c <i>")
        'a\\|b_c \\<i\\>'
    """
    return _MARKS.sub(lambda found: f"\\{found[0]}", " ".join(clean(text).split()))


def code(text: str) -> str:
    """A text as code within a line, not within a table; between more backticks than it holds in a row."""
    plain = " ".join(clean(text).split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def row(cells: Iterable[str]) -> str:
    """A table's row of any texts."""
    return f"| {' | '.join(map(escaped, cells))} |"
