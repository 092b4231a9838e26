"""What a page may say: secrets are masked and long texts cut, wherever they stand in a record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sweeps.secret_rules import REFERENCE, SECRET_NAME
from sweeps.secret_values import MASK, by_shape

TEXT = 2000
"""Characters of any one text at most."""
_COUNTED = re.compile(r"tokens", re.IGNORECASE)
"""`max_new_tokens` and `stop_tokens` are no secrets."""


def redact(value: Any, key: str = "") -> Any:
    """A JSON value without secrets: by the name of their key, by their shape, and between `://` and `@`.

    Args:
        value: anything JSON-ready.
        key: the key that it stands under.
    """
    if isinstance(value, Mapping):
        return {by_shape(str(name)): redact(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if secret_name(key) and not REFERENCE.fullmatch(value):
        return MASK
    return cut(by_shape(value))


def secret_name(key: str) -> bool:
    """Whether what stands under a key is a secret."""
    return SECRET_NAME.search(_COUNTED.sub("", key)) is not None


def cut(text: str, limit: int = TEXT) -> str:
    """The text; its middle left out, with a count, where it is longer than `limit`."""
    if len(text) <= limit:
        return text
    head, tail = limit * 3 // 4, limit // 4
    return f"{text[:head]} […{len(text) - head - tail:,} characters left out…] {text[-tail:]}"
