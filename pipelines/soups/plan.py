"""The plan of a merge of full models: what is read where, what is written where, and who does which part. Nothing is written.

Output is laid out in the order in which the first ingredient's files hold the tensors (wider types first, so that numbers lie
aligned), so that reading and writing go forward. The grid of pieces depends on the plan alone and not on the parts: any number of
workers writes the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.soups.config import MergeMethodConfig
from pipelines.soups.files import FLOATS, WEIGHTS, ModelFiles, Stored, layout
from pipelines.soups.methods.pieces import Method

SHARD_BYTES = 5 * 10**9
"""Output above this is written as several files, the tensors of each not above it."""
NUMBERS = 1 << 20
"""Numbers of all inputs together that are calculated with at once."""
FEWEST, MOST = 1 << 12, 1 << 18
"""Bounds of the numbers of one input that are calculated with at once."""
CLASSES = {
    "average": "pipelines.soups.methods.average:Average",
    "slerp": "pipelines.soups.methods.slerp:Slerp",
    "task_arithmetic": "pipelines.soups.methods.task_arithmetic:TaskArithmetic",
    "ties": "pipelines.soups.methods.ties:Ties",
    "dare": "pipelines.soups.methods.dare:Dare",
    "della": "pipelines.soups.methods.della:Della",
    "model_stock": "pipelines.soups.methods.model_stock:ModelStock",
    "regmean": "pipelines.soups.methods.regmean:RegMean",
}
"""Type of a method -> the class that runs it by pieces."""


class Target(Config):
    """A tensor of the result.

    Attributes:
        name: its name.
        file: of the output, by index.
        out: where it goes.
        sources: where the ingredients have it.
        base: where the base has it, if it is read.
        grams: Gram matrices of the ingredients, for RegMean.
        weights: one an ingredient, where they are not the plan's.
    """

    name: str
    file: int
    out: Stored
    sources: tuple[Stored, ...]
    base: Stored | None
    grams: tuple[Stored, ...] | None
    weights: tuple[float, ...] | None


class Share(Config):
    """Numbers `start` to `stop` of a target, by index."""

    target: int
    start: int
    stop: int


class OutputFile(Config):
    """A file of the result: its path in the folder that is written aside, its header, and its size in bytes."""

    path: str
    header: str
    size: int


class MergePlan(Config):
    """A merge, whole and as JSON; `pipelines/soups/streaming.py` carries it out.

    Attributes:
        folders: of the ingredients.
        weights: one an ingredient.
        base: the base's folder, for messages.
        method: how weights are merged.
        scale: the result is base + scale·(merged - base).
        seed: of random methods.
        out: the soup's folder.
        aside: where it is written first.
        files: of the result.
        targets: its tensors, in the order of writing.
        parts: what each worker does, in the order of writing.
        copies: other files of the first ingredient that go along.
    """

    folders: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None
    method: MergeMethodConfig
    scale: float
    seed: int
    out: str
    aside: str
    files: tuple[OutputFile, ...]
    targets: tuple[Target, ...]
    parts: tuple[tuple[Share, ...], ...]
    copies: tuple[str, ...]

    @property
    def index(self) -> dict[str, Any] | None:
        """The index of several files."""
        if len(self.files) == 1:
            return None
        total = sum(target.out.numel * target.out.itemsize for target in self.targets)
        where = {target.name: Path(target.out.file).name for target in self.targets}
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def build_method(config: MergeMethodConfig) -> Method:
    """The method that a configuration tells of, to run by pieces."""
    module, _, attribute = CLASSES[config.type].partition(":")
    made: Method = getattr(importlib.import_module(module), attribute)(**config.model_dump(exclude={"type"}))
    return made


def lay_out(
    models: Sequence[ModelFiles],
    weights: Sequence[float],
    names: Sequence[str],
    out: Path,
    *,
    method: MergeMethodConfig,
    base: ModelFiles | None,
    grams: Mapping[str, Sequence[Stored]],
    own: Mapping[str, Sequence[float]],
    scale: float,
    seed: int,
    copies: Sequence[str],
    parts: int,
    shard_bytes: int,
) -> MergePlan:
    """The plan for ingredients that fit together (`pipelines/soups/arithmetic.py` has looked).

    Args:
        models: the ingredients.
        weights: one an ingredient.
        names: tensors of the result.
        out: the soup's folder.
        method: how weights are merged.
        base: the base model, if it is read.
        grams: Gram matrices by tensor.
        own: weights by tensor, where they are not the plan's.
        scale: see `MergePlan`.
        seed: see `MergePlan`.
        copies: see `MergePlan`.
        parts: how many workers there are; a tensor that must be measured as a whole is one worker's.
        shard_bytes: largest output file.
    """
    first = models[0].tensors
    order = sorted(names, key=lambda name: (-first[name].itemsize, first[name].file, first[name].offset))
    shards = _shards(order, first, shard_bytes)
    label = json.dumps(
        [str(out), [str(model.folder) for model in models], list(weights), method.model_dump(), scale, seed]
    )
    aside = out.parent / f".{out.name}.{hashlib.sha256(label.encode()).hexdigest()[:12]}.tmp"
    files, places = _output(shards, first, aside)
    targets = [_target(name, places[name], models, base, grams, own) for name in order]
    return MergePlan(
        folders=tuple(str(model.folder) for model in models),
        weights=tuple(weights),
        base=None if base is None else str(base.folder),
        method=method,
        scale=scale,
        seed=seed,
        out=str(out),
        aside=str(aside),
        files=tuple(files),
        targets=tuple(targets),
        parts=_deal(targets, build_method(method), parts),
        copies=tuple(copies),
    )


def _output(
    shards: Sequence[Sequence[str]], first: Mapping[str, Stored], aside: Path
) -> tuple[list[OutputFile], dict[str, tuple[int, Stored]]]:
    """The files that shards become, and of each tensor the number of its file and its place there."""
    files: list[OutputFile] = []
    places: dict[str, tuple[int, Stored]] = {}
    for number, shard in enumerate(shards):
        called = WEIGHTS if len(shards) == 1 else f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        path = str(aside / called)
        header, offsets, size = layout([(name, first[name].dtype, first[name].shape) for name in shard])
        files.append(OutputFile(path=path, header=header, size=size))
        for name, offset in zip(shard, offsets, strict=True):
            out_at = Stored(file=path, offset=offset, dtype=first[name].dtype, shape=first[name].shape)
            places[name] = number, out_at
    return files, places


def _target(
    name: str,
    place: tuple[int, Stored],
    models: Sequence[ModelFiles],
    base: ModelFiles | None,
    grams: Mapping[str, Sequence[Stored]],
    own: Mapping[str, Sequence[float]],
) -> Target:
    """A tensor of the result, and what it is made of; whole numbers are copied, so the base is not read for them."""
    number, out = place
    return Target(
        name=name,
        file=number,
        out=out,
        sources=tuple(model.tensors[name] for model in models),
        base=base.tensors[name] if base is not None and out.dtype in FLOATS else None,
        grams=tuple(grams[name]) if name in grams else None,
        weights=tuple(own[name]) if name in own else None,
    )


def step(target: Target, method: Method) -> int:
    """Numbers of a piece of a tensor; whole rows for a method that goes by rows."""
    inputs = len(target.sources) + (target.base is not None)
    numbers = min(MOST, max(FEWEST, NUMBERS // inputs))
    if not method.by_rows:
        return numbers
    return max(1, numbers // width(target.out)) * width(target.out)


def width(tensor: Stored) -> int:
    """Numbers of a row of (shape[0], rest); a vector is one row."""
    return max(1, tensor.numel if len(tensor.shape) < 2 else tensor.numel // max(1, tensor.shape[0]))


def _shards(order: Sequence[str], tensors: Mapping[str, Stored], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in order:
        size = tensors[name].numel * tensors[name].itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _deal(targets: Sequence[Target], method: Method, parts: int) -> tuple[tuple[Share, ...], ...]:
    """Consecutive shares of nearly equal bytes; cut between pieces, or between tensors that must be measured."""
    total = sum(target.out.numel * target.out.itemsize for target in targets)
    dealt: list[list[Share]] = [[] for _ in range(parts)]
    done = 0
    for number, target in enumerate(targets):
        whole = method.measures or target.out.dtype not in FLOATS
        own = target.out.numel if whole else step(target, method)
        for start in range(0, target.out.numel, max(1, own)):
            stop = min(start + own, target.out.numel)
            shares = dealt[min(parts - 1, done * parts // max(1, total))]
            if shares and shares[-1].target == number:
                shares[-1] = Share(target=number, start=shares[-1].start, stop=stop)
            else:
                shares.append(Share(target=number, start=start, stop=stop))
            done += (stop - start) * target.out.itemsize
    return tuple(tuple(shares) for shares in dealt if shares)
