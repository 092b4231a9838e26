"""A model as several workers train it: the same on each with gradients averaged (DDP), or spread over them (FSDP)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pipelines.finetune import pissa
from pipelines.finetune.group import Group

Weights = dict[str, torch.Tensor]


def share_trained_alone(model: Any) -> None:
    """Have the workers' copies be made equal in what is trained only: the rest was read from the same files by all of them."""
    begun = {pissa.START}  # what PiSSA takes off again is computed, on each machine
    frozen = [
        name
        for name, weight in model.named_parameters()
        if not weight.requires_grad and not begun & set(name.split("."))
    ]
    buffers = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*frozen, *buffers])


def inside(wrapper: Any, module: Any, act: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Call `act` as the forward pass of a module that stands in a wrapper, which prepares and follows it; its tensor.

    Inside it the module's own forward is back: an objective may run the model as often as it likes (as in Lightning's
    forward redirection).
    """
    own = module.__dict__.get("forward")

    def put_back() -> None:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.__dict__["forward"] = own

    def forward() -> torch.Tensor:
        put_back()
        return act()

    module.__dict__["forward"] = forward
    try:
        made: torch.Tensor = wrapper()
        return made
    finally:
        put_back()


def shard(model: Any, base: Any, group: Group, device: str) -> None:
    """Spread weights, gradients and the optimizer's state over the workers, a decoder layer at a time (FSDP2, `fully_shard`).

    The model is changed in place and can't be used alone again.

    Args:
        model: what is trained: `base`, or a `PeftModel` on it; on a CPU, from where each layer goes to the device.
        base: the base model.
        group: the workers.
        device: `cpu` or `cuda`.
    """
    mesh = init_device_mesh(device, (group.size,))
    layers = set(getattr(base, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model._is_fsdp_managed_module = True  # what Transformers' Trainer asks


def is_sharded(model: Any) -> bool:
    """Whether its weights are spread over workers."""
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def gathered(model: Any) -> Iterator[None]:
    """All weights whole on every worker, so that one of them can run the model alone; a model on one worker is so anyway.

    All workers enter and leave it.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)] if is_sharded(model) else []
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole_weights(model: Any, group: Group) -> Weights | None:
    """What a checkpoint holds of a sharded model, on the first worker's CPU: what is trained, or all where all weights are.

    None on a model that is not sharded, whose weights are at hand, and on the other workers. All workers call it.
    """
    if not is_sharded(model):
        return None
    adapter = hasattr(model, "peft_config")
    kept = {name: weight for name, weight in model.named_parameters() if weight.requires_grad or not adapter}
    found = {name: _whole(weight, group) for name, weight in kept.items()}
    return found if group.rank == 0 else None


def whole_optimizer(optimizer: Any, model: Any, group: Group) -> Any:
    """What `save_optimizer` reads: the optimizer, or for a sharded model its gathered state. All workers call it."""
    if not is_sharded(model):
        return optimizer
    state = optimizer.state_dict()
    entries = {
        place: {name: _whole(value, group) for name, value in values.items()}
        for place, values in state["state"].items()
    }
    return _StateOf({"state": entries, "param_groups": state["param_groups"]})


def spread_optimizer(optimizer: Any) -> None:
    """Cut a loaded state like the weights that it belongs to. All workers call it."""
    for weight, values in optimizer.state.items():
        if not isinstance(weight, DTensor):
            continue
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape and not isinstance(value, DTensor):
                values[name] = distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


class _StateOf:
    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def state_dict(self) -> Mapping[str, Any]:
        return self._state


def _whole(value: Any, group: Group) -> Any:
    """A gathered number or tensor on the first worker's CPU; the others give their part and keep nothing."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if group.rank == 0 else None
