"""`diagnose`: how any two checkpoints lie to each other, in this process."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.commands.models import data_file, named
from sweeps.commands.places import UsageError, find_sweep
from sweeps.local import SWEEP, absolute_model

if TYPE_CHECKING:
    from evaluators.base import Example
    from pipelines.config import SFTConfig
    from pipelines.soups.diagnosis import Side
    from sweeps.load import LoadedSweep

PER_LINE = 8
"""Layers in a line of the table."""


def diagnose(arguments: argparse.Namespace) -> int:
    """Compare two checkpoints: changes, what they see, the path between them, and a curve where it is asked for."""
    import torch

    from pipelines.soups.diagnosis import Diagnosis
    from pipelines.stage import Devices
    from sweeps.paths import cache_dir

    left, right = (_side(text, arguments) for text in (arguments.a, arguments.b))
    on = arguments.on or _own_rows(arguments)
    if on is None and arguments.curve:
        raise UsageError("--curve is trained on rows: give them with --data FILE or sweep://NAME/SPLIT")
    config, rows = _rows(on, arguments)
    devices = Devices(float(os.cpu_count() or 1), float(torch.cuda.is_available()))
    found = Diagnosis(left, right, config, rows, str(cache_dir()), devices).record(
        arguments.curve or 0, arguments.curve_rate
    )
    found = {**found, "on": on}
    print(json.dumps(found, indent=2, allow_nan=False) if arguments.json else "\n".join(lines(found)))
    return 0


def lines(found: Mapping[str, Any]) -> list[str]:
    """The measurements, for people."""
    said = [f"A  {found['a']['name']}", f"B  {found['b']['name']}"]
    if found["on"] is not None:
        said.append(f"on {found['on']}, {found['rows']} rows")
    said += ["", *_deltas(found["deltas"]), "", *_cka(found["cka"]), "", *_path("path", found["path"])]
    if "curve" in found:
        said += ["", *_path("curve", found["curve"])]
    return said


def _deltas(deltas: Mapping[str, Any]) -> list[str]:
    if "missing" in deltas:
        return [f"deltas  not compared: {deltas['missing']}"]
    cosine = "none (one of them changed nothing)" if deltas["cosine"] is None else f"{deltas['cosine']:.3f}"
    norms = " and ".join(f"{norm:.4g}" for norm in deltas["norms"])
    return [f"deltas  cosine of the changes {cosine}; norms {norms}"]


def _cka(cka: Mapping[str, Any]) -> list[str]:
    if "missing" in cka:
        return [f"cka     not compared: {cka['missing']}"]
    cells = ["?" if value is None else f"{value:.3f}" for value in cka["layers"]]
    told = [f"cka     linear, of {cka['tokens']} tokens' hidden states; layer 0 is the embeddings"]
    for start in range(0, len(cells), PER_LINE):
        part = cells[start : start + PER_LINE]
        told.append(f"  layers {f'{start}-{start + len(part) - 1}':<7}  {'  '.join(part)}")
    return told


def _path(what: str, path: Mapping[str, Any]) -> list[str]:
    from sweeps.board_text import aligned

    if "missing" in path:
        ends = [f"  {name}  {_value(knot[1:])}" for name, knot in zip("AB", path.get("ends", ()), strict=False)]
        return [f"{what:<7} not walked: {path['missing']}", *ends]
    kind = "straight, A at 0 and B at 1"
    if what == "curve":
        kind = f"a Bézier curve, its bend trained for {path['steps']} steps on {path['trained_on']} other rows"
    table = aligned(["  at", "loss"], [[f"  {knot[0]:.3f}", _value(knot[1:])] for knot in path["knots"]])
    verdict = "no barrier" if path["passes"] else "a barrier"
    barrier = (
        f"  barrier {_value((path['barrier'], path['se']))} above the straight line at {path['at']:.3f}; "
        f"{path['allowed']:.2g} is noise: {verdict}"
    )
    mc = f"  mc      {_value((path['mc'], path['mc_se']))} at {path['mc_at']:.3f}; below 0 parted, near 0 connected"
    return [f"{what:<7} {kind}", *table, barrier, mc]


def _value(pair: Sequence[float | None]) -> str:
    value, error = pair
    if value is None:
        return "not finite"
    return f"{value:.4g}" + (f" ± {error:.2g}" if error is not None else "")


def _side(text: str, arguments: argparse.Namespace) -> Side:
    """A checkpoint and the base that it was trained on, as far as that is known.

    Raises:
        UsageError: for a `sweep://` name that leads nowhere, or an adapter without a base.
    """
    from pipelines.finetune.model import resolve
    from pipelines.soups.adapter_files import CONFIG
    from pipelines.soups.diagnosis import Side
    from sweeps.paths import cache_dir

    place, _ = named(text, arguments.storage)
    adapter = Path(place) / CONFIG
    base = arguments.base
    if adapter.is_file():
        base = base or json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not base:
            raise UsageError(f"{adapter} names no base model; say it with --base MODEL")
        return Side(text, Path(place), absolute_model(base, Path.cwd()))
    if base is None and text.startswith(SWEEP):
        base = getattr(_sweep(text, arguments).spec.pipeline, "base_model", None)
    return Side(text, resolve(place, cache_dir()), None if base is None else absolute_model(base, Path.cwd()))


def _own_rows(arguments: argparse.Namespace) -> str | None:
    """`select`, or `tune`, of the sweep that one of the two is from."""
    for text in (arguments.a, arguments.b):
        if text.startswith(SWEEP):
            datasets = getattr(_sweep(text, arguments).spec.pipeline, "datasets", None)
            split = next((name for name in ("select", "tune") if getattr(datasets, name, None) is not None), None)
            if split is not None:
                return f"{text.rstrip('/').rpartition('/')[0]}/{split}"
    return None


def _sweep(text: str, arguments: argparse.Namespace) -> LoadedSweep:
    from sweeps.load import load_resolved

    name = text.removeprefix(SWEEP).rstrip("/").rpartition("/")[0]
    return load_resolved(find_sweep(name, arguments.storage).resolved_spec)


def _rows(on: str | None, arguments: argparse.Namespace) -> tuple[SFTConfig, list[Example]]:
    """What they are run on, and with which settings.

    Raises:
        UsageError: for a split that is no such thing, or `test`, or a sweep without rows.
    """
    from pipelines.config import SFTConfig
    from pipelines.splits import load_splits, read_rows

    settings: dict[str, Any] = {"base_model": arguments.a, "max_steps": 1}
    rows: list[Example] = []
    data: Any = {"path": "none", "type": "text"}
    if on is not None and on.startswith(SWEEP):
        split = on.rstrip("/").rpartition("/")[2]
        if split not in ("train", "tune", "select"):
            raise UsageError(f"--data {on}: write sweep://NAME/ and train, tune or select; test is for verdicts")
        pipeline = _sweep(on, arguments).spec.pipeline
        datasets = getattr(pipeline, "datasets", None)
        if datasets is None or getattr(datasets, split) is None:
            raise UsageError(f"--data {on}: the sweep has no {split} rows; give a file")
        rows = list(load_splits(datasets, getattr(pipeline, "seed_data", 0)).rows(split))[: arguments.limit]
        kept = ("sequence_len", "eval_batch_size", "precision", "trust_remote_code")
        settings |= {key: getattr(pipeline, key) for key in kept if hasattr(pipeline, key)}
    elif on is not None:
        file = data_file(arguments, "--data")
        data, rows = file, list(read_rows(file))
    given = {"sequence_len": arguments.sequence_len, "eval_batch_size": arguments.batch_size}
    settings |= {key: value for key, value in given.items() if value is not None}
    return SFTConfig.model_validate({**settings, "datasets": {"train": data}}), rows
