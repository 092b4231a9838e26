"""Merging full models without holding them: mapped inputs, pieces in float32, a preallocated output, hashes in passing.

`merge_whole` carries out a plan of one part. Several workers that share a file system do it with `start_merge` once,
`merge_part` for every part, and `finish_merge`; the bytes are the same. Memory does not grow with the models or their
number: a piece of every ingredient is in float32 at a time (`pipelines/soups/plan.py`), and what a method measures is
small. RegMean alone holds matrices of (in, in) (`pipelines/soups/methods/regmean.py`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pipelines.finetune.checkpoint import clear_torn, put_in_place
from pipelines.hashes import file_hash
from pipelines.soups.files import FLOATS, INDEX, Mapped
from pipelines.soups.methods.pieces import Method, Piece, Place
from pipelines.soups.plan import MergePlan, OutputFile, Share, Target, build_method, step, width
from pipelines.stage import UserError

QUEUE = 4
"""Finished pieces that wait to be written."""
THREADS = 4
"""Most pieces that are calculated at once; hashing what comes out is slower than more of them."""
AHEAD = 2
"""Pieces that are read ahead."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def merge_whole(plan: MergePlan) -> dict[str, str]:
    """Carry out a plan and put the result in its place.

    Returns:
        SHA-256 of every file, by name.

    Raises:
        UserError: if numbers are not finite or whole numbers differ.
        OSError: if the disk is full, or writing fails otherwise; what stood at `out` is left as it is.
    """
    with _cleaning(plan):
        start_merge(plan)
        with Writer(plan, hashing=True) as writer:
            for part in plan.parts:
                _merge_shares(plan, part, writer)
        return _finish(plan, writer.hashes())


def start_merge(plan: MergePlan) -> None:
    """Make the files of the result at their full size, their headers written; fails at once where the disk is too small."""
    aside = Path(plan.aside)
    clear_torn(Path(plan.out))
    aside.mkdir(parents=True)
    with _cleaning(plan):
        for file in plan.files:
            with open(file.path, "wb") as made:
                _reserve(made.fileno(), file.size)
                made.write(_head(file))


def merge_part(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Write one part into the files that `start_merge` made; may be repeated, and parts may run anywhere at once.

    Args:
        payload: `plan` (a `MergePlan` as JSON) and `part` (its index).

    Returns:
        `{part, bytes}`.

    Raises:
        UserError: if numbers are not finite or whole numbers differ.
    """
    plan = MergePlan.model_validate(payload["plan"])
    shares = plan.parts[payload["part"]]
    with Writer(plan, hashing=False) as writer:
        _merge_shares(plan, shares, writer)
    sizes = [(share.stop - share.start) * plan.targets[share.target].out.itemsize for share in shares]
    return {"part": payload["part"], "bytes": sum(sizes)}


def finish_merge(plan: MergePlan) -> dict[str, str]:
    """Hash what all parts have written, add the other files and put the folder in its place; as `merge_whole` returns."""
    hashes = {file.path: file_hash(file.path) for file in plan.files}
    with _cleaning(plan):
        return _finish(plan, hashes)


class Writer:
    """Writes pieces to their places in a thread of its own, and hashes them where all come in order.

    Args:
        plan: of the merge.
        hashing: whether every byte comes here, in the order of the files.
    """

    def __init__(self, plan: MergePlan, *, hashing: bool) -> None:
        self._plan = plan
        self._files = [os.open(file.path, os.O_WRONLY) for file in plan.files]
        self._hashes = [hashlib.sha256(_head(file)) for file in plan.files] if hashing else None
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self._wait(0)
        finally:
            self._thread.shutdown(cancel_futures=True)
            for file in self._files:
                os.close(file)

    def put(self, target: Target, start: int, numbers: torch.Tensor) -> None:
        """Write numbers of a tensor from its number `start` on; they must not change afterwards."""
        offset = target.out.offset + start * target.out.itemsize
        self._waiting.append(self._thread.submit(self._write, target.file, offset, numbers))
        self._wait(QUEUE)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file, by path."""
        assert self._hashes is not None, "only a writer of whole files knows their hashes"
        return {file.path: digest.hexdigest() for file, digest in zip(self._plan.files, self._hashes, strict=True)}

    def _wait(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def _write(self, file: int, offset: int, numbers: torch.Tensor) -> None:
        raw = memoryview(numbers.contiguous().view(torch.uint8).numpy()).cast("B")
        if self._hashes is not None:
            self._hashes[file].update(raw)
        while raw:
            written = os.pwrite(self._files[file], raw, offset)
            offset, raw = offset + written, raw[written:]


def _merge_shares(plan: MergePlan, shares: tuple[Share, ...], writer: Writer) -> None:
    """Pieces are calculated by threads of one CPU each: threads inside an operation wait for each other all the time."""
    method, mapped, threads = build_method(plan.method), Mapped(), torch.get_num_threads()
    workers = min(threads, THREADS)
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            for share in shares:
                target = plan.targets[share.target]
                if target.out.dtype in FLOATS:
                    _merge_floats(plan, share, method, mapped, pool, workers, writer)
                else:
                    _copy_equal(plan, target, mapped, writer)
    finally:
        torch.set_num_threads(threads)


def _merge_floats(
    plan: MergePlan,
    share: Share,
    method: Method,
    mapped: Mapped,
    pool: ThreadPoolExecutor,
    workers: int,
    writer: Writer,
) -> None:
    target = plan.targets[share.target]
    grams = None if target.grams is None else [_matrix(mapped, gram) for gram in target.grams]
    place = Place(target.name, target.out.numel, plan.seed, grams)
    weights = plan.weights if target.weights is None else target.weights

    def whole() -> Iterator[Piece]:
        for at, end in _grid(target, method, 0, target.out.numel):
            with _piece(mapped, target, method, at, end) as piece:
                yield piece

    def merged(at: int, end: int) -> torch.Tensor:
        with _piece(mapped, target, method, at, end) as piece:
            return _merged(plan, target, piece, method.combine(piece, weights, place, facts))

    try:
        facts = method.measure(whole, weights, place)
    except (ValueError, torch.linalg.LinAlgError) as error:
        raise UserError(f"no soup: {target.name}: {error}") from error
    running: deque[tuple[int, Future[torch.Tensor]]] = deque()
    try:
        for at, end in _grid(target, method, share.start, share.stop):
            running.append((at, pool.submit(merged, at, end)))
            if len(running) > workers:
                start, done = running.popleft()
                writer.put(target, start, done.result())
        while running:
            start, done = running.popleft()
            writer.put(target, start, done.result())
    except ValueError as error:
        raise UserError(f"no soup: {target.name}: {error}") from error
    finally:
        for _, left in running:
            left.cancel()


def _merged(plan: MergePlan, target: Target, piece: Piece, merged: torch.Tensor) -> torch.Tensor:
    """A piece of the result, scaled and in the ingredients' type, from what the method made of it."""
    if plan.scale != 1.0 and piece.base is not None:
        base = piece.base.to(merged.dtype)
        merged.sub_(base).mul_(plan.scale).add_(base)
    numbers = merged.to(piece.tensors[0].dtype)
    if not bool(torch.isfinite(numbers.sum(dtype=piece.wide))):
        _refuse_infinite(plan, target, piece, numbers)
    return numbers


def _grid(target: Target, method: Method, start: int, stop: int) -> Iterator[tuple[int, int]]:
    each = step(target, method)
    return ((at, min(at + each, stop)) for at in range(start, stop, each))


@contextlib.contextmanager
def _piece(mapped: Mapped, target: Target, method: Method, at: int, end: int) -> Iterator[Piece]:
    """Numbers `at` to `end` while they are calculated with; those behind them are being read in the meantime."""
    shape = (-1, width(target.out)) if method.by_rows else (-1,)
    stored = [*target.sources, *([] if target.base is None else [target.base])]
    for tensor in stored:
        mapped.announce(tensor, end, min(end + AHEAD * (end - at), tensor.numel))
    views = [mapped.numbers(tensor, at, end).reshape(shape) for tensor in stored]
    count = len(target.sources)
    yield Piece(at, views[:count], views[count] if target.base is not None else None)
    for tensor in stored:
        mapped.forget(tensor, at, end)


def _matrix(mapped: Mapped, gram: Any) -> torch.Tensor:
    return mapped.numbers(gram, 0, gram.numel).reshape(gram.shape)


def _copy_equal(plan: MergePlan, target: Target, mapped: Mapped, writer: Writer) -> None:
    each = 1 << 20
    for at in range(0, target.out.numel, each):
        end = min(at + each, target.out.numel)
        first, *others = [mapped.numbers(tensor, at, end) for tensor in target.sources]
        for folder, other in zip(plan.folders[1:], others, strict=True):
            if not torch.equal(first, other):
                raise UserError(
                    f"no soup: {target.name} holds whole numbers that differ in {plan.folders[0]} and {folder}"
                )
        writer.put(target, at, first)


def _refuse_infinite(plan: MergePlan, target: Target, piece: Piece, numbers: torch.Tensor) -> None:
    """Say whose numbers are not finite; returns where only the sum that looked for them overflowed."""
    places = [*plan.folders, *([] if piece.base is None else [str(plan.base)])]
    for folder, tensor in zip(places, [*piece.tensors, *([] if piece.base is None else [piece.base])], strict=True):
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"no soup: {folder} holds NaN or infinite numbers in {target.name}")
    if not bool(torch.isfinite(numbers).all()):
        raise UserError(
            f"no soup: {target.name} is finite in all ingredients, but its merge overflows {target.out.dtype}"
        )


def _finish(plan: MergePlan, hashes: Mapping[str, str]) -> dict[str, str]:
    aside = Path(plan.aside)
    if plan.index is not None:
        (aside / INDEX).write_text(json.dumps(plan.index, indent=2) + "\n", encoding="utf-8")
    for name in plan.copies:
        shutil.copyfile(Path(plan.folders[0]) / name, aside / name)
    put_in_place(aside, Path(plan.out))
    return {Path(path).name: digest for path, digest in hashes.items()}


def _head(file: OutputFile) -> bytes:
    header = file.header.encode()
    return len(header).to_bytes(8, "little") + header


def _reserve(handle: int, size: int) -> None:
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(handle, size)


@contextlib.contextmanager
def _cleaning(plan: MergePlan) -> Iterator[None]:
    """Removes what was written aside when the block fails, and says so where the disk was full."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(plan.aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            parent = Path(plan.out).parent
            free, wanted = shutil.disk_usage(parent).free, sum(file.size for file in plan.files)
            text = f"the disk of {parent} is full: the soup needs {wanted} bytes and {free} are free"
            left = "; the soup that was there is left as it was" if Path(plan.out).exists() else ""
            raise OSError(error.errno, f"no soup: {text}{left}") from error
        raise
