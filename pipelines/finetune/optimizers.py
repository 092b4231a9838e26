"""Optimizer, schedule, loss scale and random state: into safetensors and JSON, and back, bit by bit. No pickle."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pipelines.config import FineTuneConfig

WEIGHTS = "optimizer.safetensors"


def optimizer_arguments(config: FineTuneConfig, total: int) -> dict[str, Any]:
    """The optimizer's and schedule's part of Hugging Face's `TrainingArguments`, laid out to `total` steps."""
    return {
        "optim": "adamw_torch",
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": math.ceil(config.warmup_ratio * total),
    }


def save_optimizer(optimizer: Any, folder: Path) -> list[dict[str, Any]]:
    """Write the optimizer's tensors to `optimizer.safetensors`; returns its parameter groups as JSON.

    Raises:
        TypeError: if the optimizer keeps a state that is no tensor.
    """
    state = optimizer.state_dict()
    tensors = {}
    for place, entries in state["state"].items():
        for name, value in entries.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"an optimizer's state must be tensors, but {name!r} is {type(value).__name__}")
            tensors[f"{place}.{name}"] = value.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS)
    groups: list[dict[str, Any]] = json.loads(json.dumps(state["param_groups"]))
    return groups


def load_optimizer(optimizer: Any, folder: Path, groups: list[dict[str, Any]]) -> None:
    """The inverse of `save_optimizer`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / WEIGHTS).items():
        place, _, name = key.partition(".")
        state.setdefault(int(place), {})[name] = value
    restored = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": restored})


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
