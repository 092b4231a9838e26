"""Optimizer, schedule, loss scale and random state: into safetensors and JSON, and back, bit by bit. No pickle."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipelines.config import FineTuneConfig
from pipelines.finetune.optimizer_kinds import schedule_arguments, trained_again

WEIGHTS = "optimizer.safetensors"


def optimizer_arguments(config: FineTuneConfig, total: int) -> dict[str, Any]:
    """Clipping and schedule as Hugging Face's `TrainingArguments`, laid out to `total` steps; the optimizer is built by us."""
    return {"max_grad_norm": config.max_grad_norm, **schedule_arguments(config, warmup_steps(config, total))}


def warmup_steps(config: FineTuneConfig, total: int) -> int:
    """Steps that warm up."""
    return math.ceil(config.warmup_ratio * total)


def save_optimizer(optimizer: Any, folder: Path) -> list[dict[str, Any]]:
    """Write the optimizer's state to `optimizer.safetensors`; returns its parameter groups as JSON.

    Python's numbers in the state become tensors of one number, named in the file's metadata. Infinite settings are left out of
    the groups: the configuration gives them again.

    Raises:
        TypeError: if the optimizer keeps a state that is neither a tensor nor a number.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers = []
    for place, entries in state["state"].items():
        for name, value in _flat(entries):
            key = f"{place}.{name}"
            if isinstance(value, torch.Tensor):
                tensors[key] = value.detach().cpu().contiguous().clone()
            elif isinstance(value, int | float):
                tensors[key] = torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
                numbers.append(key)
            else:
                raise TypeError(f"an optimizer's state must be tensors, but {name!r} is {type(value).__name__}")
    save_file(tensors, folder / WEIGHTS, {"numbers": json.dumps(numbers)})
    finite = [{k: v for k, v in group.items() if v not in (math.inf, -math.inf)} for group in state["param_groups"]]
    groups: list[dict[str, Any]] = json.loads(json.dumps(finite, allow_nan=False))
    return groups


def _flat(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A parameter's state; bitsandbytes keeps a part of it one level deeper."""
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield name, value


def load_optimizer(optimizer: Any, folder: Path, groups: list[dict[str, Any]]) -> None:
    """The inverse of `save_optimizer`; weights that were trained with and are not the checkpoint's go into the model."""
    state: dict[int, dict[str, Any]] = {}
    with safe_open(folder / WEIGHTS, "pt") as file:
        numbers = set(json.loads((file.metadata() or {}).get("numbers", "[]")))
        for key in file.keys():  # noqa: SIM118
            place, _, name = key.partition(".")
            value = file.get_tensor(key)
            state.setdefault(int(place), {})[name] = value.item() if key in numbers else value
    restored = []
    for own, group in zip(optimizer.param_groups, groups, strict=True):
        pairs = {k: tuple(v) if isinstance(own.get(k), tuple) else v for k, v in group.items()}
        restored.append({**{k: v for k, v in own.items() if k != "params"}, **pairs})
    optimizer.load_state_dict({"state": state, "param_groups": restored})
    trained_again(optimizer)


def schedule_state(scheduler: Any) -> dict[str, Any]:
    """A learning-rate schedule's state as JSON; its shape comes from the configuration."""
    state = {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}
    plain: dict[str, Any] = json.loads(json.dumps(state))
    return plain


def load_schedule(scheduler: Any, state: Mapping[str, Any]) -> None:
    """The inverse of `schedule_state`."""
    scheduler.load_state_dict({**scheduler.state_dict(), **state})


def scale_state(scaler: Any) -> dict[str, Any] | None:
    """The scale of an fp16 loss and the steps since it last changed, as JSON; None without a scaler."""
    if scaler is None:
        return None
    state = scaler.state_dict()
    return {"scale": float(state["scale"]), "growth_tracker": int(state["_growth_tracker"])}


def load_scale(scaler: Any, state: Mapping[str, Any] | None) -> None:
    """The inverse of `scale_state`."""
    if scaler is not None and state is not None:
        own = scaler.state_dict()
        scaler.load_state_dict({**own, "scale": state["scale"], "_growth_tracker": state["growth_tracker"]})


def random_state(device: str) -> dict[str, Any]:
    """The random states of Python, NumPy, torch and, on a GPU, its own, as JSON."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, np.asarray(words, dtype="<u8").tobytes().hex(), gauss],
        "numpy": [name, np.asarray(keys, dtype="<u4").tobytes().hex(), int(position), int(has_gauss), float(cached)],
        "torch": _hex(torch.random.get_rng_state()),
    }
    if device == "cuda":
        state["cuda"] = _hex(torch.cuda.random.get_rng_state())
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(np.frombuffer(bytes.fromhex(words), dtype="<u8").tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.frombuffer(bytes.fromhex(keys), dtype="<u4"), position, has_gauss, cached))
    torch.random.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(_tensor(state["cuda"]))


def _hex(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
