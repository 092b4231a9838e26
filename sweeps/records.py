"""Small JSON objects in files and in remote storage: read without trust, written aside and moved."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.paths import SweepPaths


def parsed(data: bytes | str | None) -> dict[str, Any]:
    """The JSON object that a text holds; an empty one where it holds none."""
    try:
        record = json.loads(data) if data is not None else {}
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    try:
        return parsed(path.read_bytes())
    except OSError:
        return {}


def write_aside(path: Path, text: str | bytes) -> None:
    """Write a small file aside, durable, and move it to its place: a reader finds the old one or the new one, whole.

    Raises:
        OSError: if it can't be written; what was there stands.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_resolved(paths: SweepPaths, spec: Mapping[str, Any]) -> None:
    """`sweep.resolved.json`, where it does not say that already.

    Raises:
        OSError: if it can't be written.
    """
    text = json.dumps(spec, indent=1, ensure_ascii=False, allow_nan=False)
    with contextlib.suppress(OSError):
        if paths.resolved_spec.read_text(encoding="utf-8") == text:
            return
    write_aside(paths.resolved_spec, text)
