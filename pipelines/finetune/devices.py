"""The device that a fine-tune runs on: chosen, measured, and its out-of-memory errors named as ours."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from pipelines.stage import Devices, OutOfMemory, UserError

if TYPE_CHECKING:
    from pipelines.config import FineTuneConfig


def prepare_device(devices: Devices) -> str:
    """Set the threads and name the device.

    Raises:
        UserError: if a GPU is asked for and none is seen.
    """
    torch.set_num_threads(max(1, int(devices.cpus)))
    if devices.gpus <= 0:
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError("resources.gpus: a GPU is asked for, but torch sees none here; install torch with CUDA, or 0")
    return "cuda"


def has_bf16() -> bool:
    """Whether the CPU has instructions for bf16; True where torch is too old to know."""
    known = getattr(torch.cpu, "get_capabilities", None)
    return known is None or any(there is True and name.endswith("bf16") for name, there in known().items())


def peak_memory(device: str) -> float:
    """Bytes at most so far: of this process on a CPU, else of the device."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


@contextlib.contextmanager
def memory_errors(config: FineTuneConfig) -> Iterator[None]:
    """Name a library's out-of-memory error as ours, with the micro batch."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        full = "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
        if isinstance(error, OutOfMemory) or not (isinstance(error, MemoryError) or full):
            raise
        raise OutOfMemory(
            f"out of memory with micro_batch_size {config.micro_batch_size} and sequence_len {config.sequence_len}: "
            f"{str(error).strip().splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
