"""The optimizers that a fine-tune may train with, built from its configuration, and what is particular to one of them.

Sources: AdamW (arXiv 1711.05101) is PyTorch's; NAdamW is `pipelines.finetune.nadamw`; schedule-free AdamW (arXiv 2405.15682) and
Prodigy (arXiv 2306.06101) are their authors' packages `schedulefree` and `prodigyopt`; Adafactor (arXiv 1804.04235) is
Transformers', with the learning rate from outside and without a first moment; AdamW with 8-bit moments (arXiv 2110.02861) is
`bitsandbytes`'s, which keeps the moments of embeddings and of small weights in 32 bits.

Norms and biases are not decayed, as in Transformers' Trainer.

Example:
    >>> optimizer = build_optimizer(config, model, decayed, warmup_steps=10, device="cpu")
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from pipelines.config import FineTuneConfig
from pipelines.extras import needs
from pipelines.finetune.nadamw import NAdamW

TRAINED_WITH = "y"
"""The state that holds a schedule-free weight as it is trained with, while the model holds the average."""

_Groups = list[dict[str, Any]]


def build_optimizer(
    config: FineTuneConfig, model: torch.nn.Module, decayed: Collection[str], *, warmup_steps: int, device: str
) -> torch.optim.Optimizer:
    """The optimizer of everything in a model that is trained.

    Args:
        config: the trial's settings.
        model: the model.
        decayed: names of parameters that weight decay is for.
        warmup_steps: steps of warm-up in the run.
        device: `cpu` or `cuda`.

    Raises:
        UserError: if it needs a package that is not installed.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: _Groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    if config.optimizer == "schedule_free_adamw":
        return _schedule_free(config, groups, warmup_steps, device)
    if config.optimizer == "prodigy":
        return _prodigy(config, groups, warmup_steps)
    if config.optimizer == "adamw_8bit":
        return _adamw_8bit(config, groups, model)
    return _PLAIN[config.optimizer](config, groups)


def schedule_arguments(config: FineTuneConfig, warmup_steps: int) -> dict[str, Any]:
    """What multiplies the learning rate, as `TrainingArguments` take it; schedule-free AdamW warms up by itself."""
    if config.optimizer == "schedule_free_adamw":
        return {"lr_scheduler_type": "constant", "warmup_steps": 0}
    return {"lr_scheduler_type": config.lr_scheduler, "warmup_steps": warmup_steps}


def current_rate(optimizer: Any, scheduler: Any) -> float:
    """The learning rate of the newest step: the schedule's, times what the optimizer itself found or warmed up to."""
    group = _inner(optimizer).param_groups[0]
    if "scheduled_lr" in group:
        return float(group["scheduled_lr"])
    return float(scheduler.get_last_lr()[0]) * float(group.get("d", 1.0))


@contextlib.contextmanager
def averaged(optimizer: Any) -> Iterator[None]:
    """Have the model hold the averaged weights (the paper's x), and afterwards, bit by bit, those that it trains with (y).

    Meanwhile y is in the optimizer's state, so that a checkpoint keeps it beside x. Other optimizers average nothing.
    """
    inner = _inner(optimizer)
    if not _is_schedule_free(inner):
        yield
        return
    for parameter, state in inner.state.items():
        state[TRAINED_WITH] = parameter.detach().clone()
    inner.eval()
    try:
        yield
    finally:
        trained_again(inner)


@torch.no_grad()
def trained_again(optimizer: Any) -> None:
    """Have the model hold the weights it trains with, where the state has them: after `averaged`, or from a checkpoint."""
    inner = _inner(optimizer)
    for parameter, state in inner.state.items():
        if TRAINED_WITH in state:
            parameter.copy_(state.pop(TRAINED_WITH))
    if _is_schedule_free(inner):
        for group in inner.param_groups:
            group["train_mode"] = True


def _is_schedule_free(inner: Any) -> bool:
    return "train_mode" in inner.param_groups[0]


def _inner(optimizer: Any) -> Any:
    """The optimizer inside Accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _adam_arguments(config: FineTuneConfig) -> dict[str, Any]:
    betas = (config.adam_beta1, config.adam_beta2)
    return {"lr": config.learning_rate, "betas": betas, "eps": config.adam_epsilon}


def _adamw(config: FineTuneConfig, groups: _Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **_adam_arguments(config))


def _nadamw(config: FineTuneConfig, groups: _Groups) -> torch.optim.Optimizer:
    return NAdamW(groups, **_adam_arguments(config))


def _adafactor(config: FineTuneConfig, groups: _Groups) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=config.learning_rate, scale_parameter=False, relative_step=False)


_PLAIN: dict[str, Callable[[FineTuneConfig, _Groups], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "nadamw": _nadamw,
    "adafactor": _adafactor,
}


def _schedule_free(config: FineTuneConfig, groups: _Groups, warmup_steps: int, device: str) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    arguments = _adam_arguments(config)
    return AdamWScheduleFree(groups, **arguments, warmup_steps=warmup_steps, foreach=device != "cpu")


def _prodigy(config: FineTuneConfig, groups: _Groups, warmup_steps: int) -> torch.optim.Optimizer:
    """With its rate at 1, as its authors ask for; warm-up is kept out of the estimate."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it prints how it decays
        return Prodigy(
            groups,
            **{**_adam_arguments(config), "lr": 1.0},
            d_coef=config.prodigy_d_coef,
            safeguard_warmup=warmup_steps > 0,
        )


def _adamw_8bit(config: FineTuneConfig, groups: _Groups, model: torch.nn.Module) -> torch.optim.Optimizer:
    optim = needs("bitsandbytes", "optimizer: adamw_8bit", extra="bitsandbytes").optim
    manager = optim.GlobalOptimManager.get_instance()
    manager.initialize()  # it is the process's, and would remember weights of earlier trials
    embeddings = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    manager.override_config(embeddings, "optim_bits", 32)
    return optim.AdamW8bit(groups, **_adam_arguments(config))
