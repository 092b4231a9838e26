"""Axolotl's `--sweep` file as the search space.

Axolotl's sweep is a grid: a list a key, and under `_` mappings that go together (src/axolotl/cli/utils/sweeps.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sweeps.convert.axolotl_training import Outcome, Whole, translate
from sweeps.convert.base import Book, says
from sweeps.convert.fits import default_of


def parameters_of(sweep: Mapping[str, Any], book: Book, whole: Whole, pipeline: dict[str, Any]) -> dict[str, Any]:
    """The search space; what turns out to have one value goes into the pipeline."""
    parameters: dict[str, Any] = {}
    for key, values in sweep.items():
        if not book.open(key):
            continue
        if key == "_":
            pairs = [one for one in values if isinstance(one, Mapping)] if isinstance(values, list) else []
            _pairs(pairs, book, whole, pipeline, parameters)
        elif isinstance(values, list):
            _axis(key, values, book, whole, pipeline, parameters)
        else:
            book.left(key, "Axolotl sweeps lists; write [VALUE]")
    return parameters


def _axis(
    key: str, values: list[Any], book: Book, whole: Whole, pipeline: dict[str, Any], parameters: dict[str, Any]
) -> None:
    outs = [translate(key, value, whole) for value in values]
    kept = [out for out in outs if out.kind != "left"]
    if not kept:
        book.left(key, outs[0].why)
        return
    rows = _distinct([_filled(out.sets, kept, pipeline) for out in kept])
    ours = _put(rows, key, pipeline, parameters) if rows[0] else None
    notes = [f"{value} is left out: {out.why}" for value, out in zip(values, outs, strict=True) if out.kind == "left"]
    notes += dict.fromkeys(out.why for out in kept if out.kind == "changed" and out.why)
    if len(rows) < len(kept):
        notes.append("values that mean the same here are tried once")
    changed = notes or any(out.kind == "changed" for out in kept)
    book.enter(key, "changed" if changed else "carried", ours, "; ".join(notes) or ("" if ours else kept[0].why))


def _pairs(
    pairs: list[Mapping[str, Any]], book: Book, whole: Whole, pipeline: dict[str, Any], parameters: dict[str, Any]
) -> None:
    """`_`: mappings that go together."""
    outs = []
    for index, pair in enumerate(pairs):
        sets: dict[str, Any] = {}
        for key, value in pair.items():
            out = translate(key, value, whole)
            sets |= out.sets
            book.enter(f"_[{index}].{key}", out.kind, out.ours, out.why)
        outs.append(Outcome("carried", sets))
    rows = _distinct([_filled(out.sets, outs, pipeline) for out in outs])
    if any(rows):
        _put(rows, "paired", pipeline, parameters)


def _filled(sets: Mapping[str, Any], others: Iterable[Outcome], pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """What one value sets, with what the others set too, as it is without them."""
    paths = dict.fromkeys(path for out in others for path in out.sets)
    return {path: sets[path] if path in sets else pipeline.get(path, default_of(path)) for path in paths}


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for index, row in enumerate(rows) if row not in rows[:index]]


def _put(rows: list[dict[str, Any]], group: str, pipeline: dict[str, Any], parameters: dict[str, Any]) -> str:
    """Make rows part of the space (one row: of the pipeline), and say how the file says it."""
    for path in rows[0]:
        pipeline.pop(path, None)
    if len(rows) == 1:
        pipeline |= rows[0]
        return ", ".join(says(*item) for item in rows[0].items())
    if len(rows[0]) == 1:
        path = next(iter(rows[0]))
        parameters[path] = [row[path] for row in rows]
        return says(f"parameters.{path}", parameters[path])
    parameters.setdefault("together", {})[group] = rows
    return says(f"parameters.together.{group}", rows)
