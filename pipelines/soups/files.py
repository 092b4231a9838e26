"""Models' safetensors files, sharded or not, as what lies where; headers are read, numbers are mapped and never loaded.

Example:
    >>> model = ModelFiles(Path("model"))
    >>> model.tensors["model.norm.weight"].shape
    (576,)
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.config import Config
from pipelines.stage import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types that are understood; eight-bit floats stand for quantised weights, which can't be averaged without their scales."""
FLOATS = ("F64", "F32", "F16", "BF16")
_LONGEST_HEADER = 100_000_000


class Stored(Config):
    """Where a tensor lies.

    Attributes:
        file: path of the safetensors file.
        offset: of its first byte in the file.
        dtype: as safetensors calls it.
        shape: its shape.
    """

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return int(DTYPES[self.dtype].itemsize)


class ModelFiles:
    """The tensors of a model's folder.

    Args:
        folder: where `model.safetensors` or its index lies.

    Attributes:
        folder: the same.
        tensors: by name.

    Raises:
        UserError: if a file is missing or torn, or a type is not understood.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        where: Mapping[str, str] | None = None
        names = [WEIGHTS]
        if (folder / INDEX).is_file():
            where = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(where.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(f"no soup: {folder} has no {', '.join(missing)}")
        for file in names:
            for name, tensor in read_header(folder / file).items():
                if where is None or where.get(name) == file:
                    self.tensors[name] = tensor
        lost = sorted(set(where or ()) - set(self.tensors))
        if lost:
            raise UserError(f"no soup: {folder / INDEX} names {lost[0]}, which is not in {(where or {})[lost[0]]}")


def read_header(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds, by name.

    Raises:
        UserError: if it is torn or no safetensors file, or a type is not understood.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise UserError(f"no soup: {path} is torn or no safetensors file")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise UserError(f"no soup: {path} is torn or no safetensors file ({error})") from error
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"no soup: {name} in {path} is {entry['dtype']}, which can't be merged ({', '.join(DTYPES)})"
            )
        begin, end = entry["data_offsets"]
        tensor = Stored(file=str(path), offset=8 + length + begin, dtype=entry["dtype"], shape=tuple(entry["shape"]))
        if end - begin != tensor.numel * tensor.itemsize or 8 + length + end > size:
            raise UserError(f"no soup: {path} is torn: {name} does not lie within it")
        found[name] = tensor
    return found


def layout(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[str, list[int], int]:
    """The header of a safetensors file, the offset of each tensor in the file, and its whole size.

    Args:
        tensors: (name, dtype, shape) in the order in which they lie.
    """
    record: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, begins = 0, []
    for name, dtype, shape in tensors:
        end = at + math.prod(shape) * DTYPES[dtype].itemsize
        record[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        begins.append(at)
        at = end
    header = json.dumps(record, separators=(",", ":"))
    header += " " * (-len(header) % 8)
    return header, [8 + len(header) + begin for begin in begins], 8 + len(header) + at


class Mapped:
    """Numbers of tensors, mapped; what was mapped is given back with the object."""

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}

    def numbers(self, tensor: Stored, start: int, stop: int) -> torch.Tensor:
        """Numbers `start` to `stop` of a tensor, flat; a view of the file, to be read only."""
        if start == stop:
            return torch.empty(0, dtype=DTYPES[tensor.dtype])
        offset = tensor.offset + start * tensor.itemsize
        dtype = DTYPES[tensor.dtype]
        file = self._map(tensor.file)
        if offset % tensor.itemsize:
            raw = bytearray(file[offset : offset + (stop - start) * tensor.itemsize])
            return torch.frombuffer(raw, dtype=dtype)
        return torch.frombuffer(file, dtype=dtype, count=stop - start, offset=offset)

    def announce(self, tensor: Stored, start: int, stop: int) -> None:
        """Ask the kernel to read numbers ahead."""
        self._advise(mmap.MADV_WILLNEED, tensor, start, stop)

    def forget(self, tensor: Stored, start: int, stop: int) -> None:
        """Give back the memory of numbers that were read; they stay in the kernel's cache."""
        self._advise(mmap.MADV_DONTNEED, tensor, start, stop)

    def _advise(self, advice: int, tensor: Stored, start: int, stop: int) -> None:
        begin = (tensor.offset + start * tensor.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
        length = tensor.offset + stop * tensor.itemsize - begin
        if length > 0:
            with contextlib.suppress(OSError):
                self._map(tensor.file).madvise(advice, begin, length)

    def _map(self, path: str) -> mmap.mmap:
        if path not in self._maps:
            with open(path, "rb") as file:
                self._maps[path] = mmap.mmap(
                    file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
                )
        return self._maps[path]
