"""The exact average of DoRA adapters, mixed with LoRA ones or not, as one DoRA adapter of the summed rank.

DoRA (Liu et al. 2024, arXiv 2402.09353) makes of a weight W (out, in) the weight diag(cᵢ)(W + ΔWᵢ), where ΔWᵢ = sᵢBᵢAᵢ and
cᵢ = mᵢ / ‖W + ΔWᵢ‖ by rows; plain LoRA has cᵢ = 1. With weights wᵢ the soup of the changes is

    W + Σ wᵢ (diag(cᵢ)(W + ΔWᵢ) - W) = diag(c)W + Σ wᵢ diag(cᵢ)ΔWᵢ    where c = 1 + Σ wᵢ (cᵢ - 1),

which is diag(c)(W + ΔW) with ΔW = Σ wᵢ diag(cᵢ / c)ΔWᵢ: again a DoRA adapter, of magnitude c·‖W + ΔW‖. The norms need the
base model's weights. A layer that an adapter lacks has cᵢ = 1 and ΔWᵢ = 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from pipelines.stage import UserError

if TYPE_CHECKING:
    from pipelines.soups.lora import Adapter, Factors

SMALLEST = 1e-6
"""A soup whose c is nearer to zero than this somewhere can't be written as DoRA."""


def merge_dora_factors(
    adapters: Sequence[tuple[Adapter, float]], base_weight: Callable[[str], torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The soup's factors by layer: A (Σr, in), B (out, Σr), magnitude (out,); the scaling is 1.

    Args:
        adapters: (adapter, weight).
        base_weight: a layer's W, (out, in).

    Raises:
        ValueError: if the weights make some row of c vanish.
    """
    merged = {}
    for layer in sorted({layer for adapter, _ in adapters for layer in adapter}):
        weight = base_weight(layer).to(torch.float64)
        parts = [(adapter[layer], share) for adapter, share in adapters if layer in adapter]
        stretches = [_stretch(factors, weight) for factors, _ in parts]
        total = 1 + sum(share * (own - 1) for own, (_, share) in zip(stretches, parts, strict=True))
        if bool((total.abs() < SMALLEST).any()):
            raise ValueError(f"the weights of the soup cancel a row of {layer}")
        down = torch.cat([factors.down for factors, _ in parts], dim=0)
        wide = [
            (share * factors.scale * own / total)[:, None] * factors.up.to(torch.float64)
            for own, (factors, share) in zip(stretches, parts, strict=True)
        ]
        up = torch.cat(wide, dim=1).to(down.dtype)
        norm = torch.linalg.norm(weight + up.to(torch.float64) @ down.to(torch.float64), dim=1)
        merged[layer] = (down, up, (total * norm).to(down.dtype))
    return merged


def _stretch(factors: Factors, weight: torch.Tensor) -> torch.Tensor:
    """C of one adapter, (out,), in float64."""
    if factors.magnitude is None:
        return torch.ones(weight.shape[0], dtype=torch.float64)
    changed = weight + factors.scale * factors.up.to(torch.float64) @ factors.down.to(torch.float64)
    return factors.magnitude.to(torch.float64) / torch.linalg.norm(changed, dim=1)


@contextlib.contextmanager
def base_weights(folder: Path) -> Iterator[Callable[[str], torch.Tensor]]:
    """Reads the weight of a layer of a base model from its folder of safetensors, one at a time."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(str(path), "pt")) for path in sorted(folder.glob("*.safetensors"))]
        places: Mapping[str, int] = {name: at for at, file in enumerate(files) for name in file.keys()}  # noqa: SIM118

        def read(layer: str) -> torch.Tensor:
            name = f"{layer}.weight"
            if name not in places:
                raise UserError(f"no soup: the base model {folder} has no weight {name}, which DoRA's norms need")
            weight: torch.Tensor = files[places[name]].get_tensor(name)
            return weight

        yield read
