"""Checkpoints: safetensors and JSON, `complete.json` last, with sizes and hashes. No torch, no pickle.

A folder without a matching `complete.json` does not exist. `complete.json` also keeps the report that was made at the
checkpoint, items included, so that a report lost between the disk and the ledger can be made again, and its own hash.

Example:
    >>> with placing(attempt / "checkpoint-30") as folder:
    ...     (folder / "state.json").write_text("{}")
    ...     write_complete(folder, Report(30, scores, checkpoint="checkpoint-30"))
    >>> newest_whole(attempt)
    PosixPath('.../checkpoint-30')
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.base import ItemSet, Report, Score
from pipelines.hashes import file_hash, record_hash
from pipelines.weights import BESIDE

COMPLETE = "complete.json"
FORMAT = 2
UNSEALED = 1
"""An older format of `complete.json`, without its own hash."""
_NAME = re.compile(r"checkpoint-(\d+)")
_NOT_ANSWERS = ("optimizer.safetensors", BESIDE, "state.json")
"""Files of a checkpoint that say nothing about the model's answers."""


@contextlib.contextmanager
def placing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, moved to its place when the block ends well and removed when it does not.

    What stood at `folder` before is replaced. Left-overs of killed writers of the same folder are removed.
    """
    clear_torn(folder)
    aside = folder.parent / f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    aside.mkdir(parents=True)
    try:
        yield aside
        put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def clear_torn(folder: Path) -> None:
    """Remove what killed writers of a folder left beside it."""
    for torn in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)


def put_in_place(aside: Path, folder: Path) -> None:
    """Move a whole folder that was written aside to its place; what stood there is replaced."""
    if folder.exists():
        (folder / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(folder)
    aside.rename(folder)
    _sync(folder.parent)


def write_complete(folder: Path, report: Report) -> None:
    """Write `complete.json` for the files that lie in `folder` now, after forcing them to the disk.

    Args:
        folder: the checkpoint's folder; every file under it is hashed.
        report: what was reported here; kept with its items.
    """
    files = {}
    for path in _files(folder):
        _sync(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    for inner in sorted(path for path in folder.rglob("*") if path.is_dir()):
        _sync(inner)
    record = {"format": FORMAT, "files": files, "report": report_record(report)}
    body = json.dumps({**record, "seal": record_hash(record)}, indent=1, allow_nan=False, sort_keys=True)
    aside = folder / f".{COMPLETE}.tmp"
    with aside.open("w", encoding="utf-8") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / COMPLETE)
    _sync(folder)


def is_whole(folder: Path) -> bool:
    """Whether `complete.json` is there and every file it names has its size and hash; files it does not name are ignored."""
    record = _read_complete(folder)
    if record is None:
        return False
    try:
        files = record["files"]
        sized = all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
        return sized and all(file_hash(folder / name) == entry["sha256"] for name, entry in files.items())
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def newest_whole(attempt_folder: Path) -> Path | None:
    """The whole `checkpoint-<resource>` with the highest resource, or None; torn ones are passed over."""
    found = []
    if attempt_folder.is_dir():
        for path in attempt_folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), path))
    return next((path for _, path in sorted(found, reverse=True) if is_whole(path)), None)


def read_report(folder: Path) -> Report:
    """The report kept in a whole checkpoint, with items and item sets.

    Raises:
        FileNotFoundError: if the folder has no readable `complete.json`.
    """
    record = _read_complete(folder)
    if record is None:
        raise FileNotFoundError(f"{folder} has no readable {COMPLETE}; it is not a checkpoint")
    return report_from_record(record["report"])


def content_hash(folder: Path) -> str:
    """SHA-256 (hex) over names and hashes of a whole checkpoint's weights and their configs, as `complete.json` has them.

    Raises:
        FileNotFoundError: if the folder has no readable `complete.json`.
    """
    record = _read_complete(folder)
    if record is None:
        raise FileNotFoundError(f"{folder} has no readable {COMPLETE}; it is not a checkpoint")
    weights = {n: e["sha256"] for n, e in record["files"].items() if n not in _NOT_ANSWERS}
    return record_hash(weights)


def report_record(report: Report) -> dict[str, Any]:
    """A report as JSON, items as base64 of little-endian float32, each item set once by its hash."""
    sets: dict[str, Any] = {}
    scores = []
    for score in report.scores:
        record = score.record()
        if score.item_set is not None:
            body = score.item_set
            sets[body.hash] = {"ids": body.ids, "weights": body.weights, "groups": body.groups}
        if score.items is not None:
            record["items"] = base64.b64encode(np.ascontiguousarray(score.items, dtype="<f4").tobytes()).decode()
        scores.append(record)
    return {
        "resource": report.resource,
        "scores": scores,
        "item_sets": sets,
        "telemetry": {name: _plain(value) for name, value in report.telemetry.items()},
        "checkpoint": report.checkpoint,
    }


def report_from_record(record: Mapping[str, Any]) -> Report:
    """The inverse of `report_record`."""
    sets = {key: _item_set(body) for key, body in record["item_sets"].items()}
    scores = []
    for entry in record["scores"]:
        score = Score.from_record(entry)
        raw = entry.get("items")
        items = None if raw is None else np.frombuffer(base64.b64decode(raw), dtype="<f4").astype(np.float32)
        scores.append(replace(score, item_set=sets.get(entry.get("item_set")), items=items))
    telemetry = {name: float("nan") if value is None else float(value) for name, value in record["telemetry"].items()}
    return Report(record["resource"], tuple(scores), telemetry, record["checkpoint"])


def _item_set(body: Mapping[str, Any]) -> ItemSet:
    weights, groups = body["weights"], body["groups"]
    return ItemSet(
        tuple(body["ids"]),
        None if weights is None else tuple(weights),
        None if groups is None else tuple(groups),
    )


def _plain(value: float) -> float | str | None:
    if math.isfinite(value):
        return float(value)
    return None if math.isnan(value) else ("inf" if value > 0 else "-inf")


def _read_complete(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    if record.get("format") == FORMAT:
        return record if record.pop("seal", None) == record_hash(record) else None
    return record if record.get("format") == UNSEALED else None


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (COMPLETE, f".{COMPLETE}.tmp"))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
