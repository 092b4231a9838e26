"""Texts of users inside a YAML file and its comments: whatever they hold, the file stays one that reads them back."""

from __future__ import annotations

import re

from sweeps.glyphs import clean
from sweeps.yaml_source import scalar

_PLAIN = re.compile(r"(?:[a-z]+://)?[A-Za-z0-9_./~][A-Za-z0-9_./+=~-]*(?: [A-Za-z0-9_./+=~-]+)*\Z")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(text: str) -> str:
    """A text as a YAML scalar, good inside `{...}` too; in quotes where it must be."""
    if _PLAIN.match(text) and scalar(text) == text and isinstance(scalar(text), str):
        return text
    return '"' + "".join(_ESCAPES.get(sign) or _sign(sign) for sign in text) + '"'


def _sign(sign: str) -> str:
    if sign.isprintable():
        return sign
    code = ord(sign)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def comment(text: str, width: int = 160) -> str:
    """A text as one line of a comment."""
    plain = " ".join(clean(text).split())
    return plain if len(plain) <= width else plain[: width - 3] + "..."
