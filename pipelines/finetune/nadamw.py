"""NAdamW: AdamW with Nesterov's momentum, as the AlgoPerf benchmark's baseline trains with it.

Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam", in the form of Choi et al. 2019 (arXiv 1910.05446, table 1) and of
mlcommons/algorithmic-efficiency (`pytorch_nadamw_full_budget.py`), whose calibrated values are `sweeps.baselines`'. With gradient
g, decays β1 and β2, rate η, weight decay λ, and step t from 1:

    p <- (1 - η λ) p
    m <- β1 m + (1 - β1) g        v <- β2 v + (1 - β2) g²
    p <- p - η (β1 m + (1 - β1) g) / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + ε)

With β1 = 0 that is AdamW. `torch.optim.NAdam` is another rule: its β1 follows a schedule of its own (ψ), and m and g are
corrected for their bias apart. Left out: closures, sparse and complex gradients, `capturable`.

Example:
    >>> NAdamW(model.parameters(), lr=1e-3).step()
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch


class NAdamW(torch.optim.Optimizer):
    """See the module. The state of a parameter: `step` (a number, fp32), `exp_avg` (m) and `exp_avg_sq` (v), both of its shape.

    Args:
        params: parameters, or groups of them.
        lr: η.
        betas: (β1, β2).
        eps: ε.
        weight_decay: λ, decoupled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in trained:
                if not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.zeros((), dtype=torch.float32),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
                self.state[parameter]["step"] += 1
            # All at once on a GPU, where starting kernels is what takes long; one by one on a CPU, where memory is short.
            together = bool(trained) and trained[0].device.type != "cpu"
            for some in [trained] if together else [[parameter] for parameter in trained]:
                self._update(some, group)

    def _update(self, parameters: Sequence[torch.Tensor], group: dict[str, Any]) -> None:
        rate, (beta1, beta2) = group["lr"], group["betas"]
        states = [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        steps = [float(state["step"]) for state in states]
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        ahead = torch._foreach_lerp(first, gradients, 1 - beta1)
        sizes = torch._foreach_sqrt(second)
        torch._foreach_div_(sizes, [math.sqrt(1 - beta2**step) for step in steps])
        torch._foreach_add_(sizes, group["eps"])
        torch._foreach_addcdiv_(parameters, ahead, sizes, [-rate / (1 - beta1**step) for step in steps])
