"""One layer of an adapter as two factors, whatever kind of adapter it is, and their exact weighted sum.

Every additive adapter of PEFT that is listed here changes a weight by ΔW = scale · up · down:

- LoRA (Hu et al. 2021, arXiv 2106.09685): s·B·A with s = α/r, or α/√r for rsLoRA (arXiv 2312.03732).
- VeRA (Kopiczko et al. 2024, arXiv 2310.11454): diag(b)·B · diag(d)·A, B and A shared by all layers.
- LoHa (Hyeon-Woo et al. 2022, arXiv 2108.06098): s·(B₁A₁) ∘ (B₂A₂), of rank r² at most: the columns of `up` are the products
  of a column of B₁ and one of B₂, the rows of `down` those of a row of A₁ and one of A₂.
- LoKr (Yeh et al. 2024, arXiv 2309.14859): s·C ⊗ (B·A) = s·(C ⊗ B)(I ⊗ A), and with C = C₁C₂ s·(C₁ ⊗ B)(C₂ ⊗ A).

So their sums are exact too, without a dense ΔW and without an SVD. Left out: convolutions (Tucker cores).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Parts = Mapping[str, torch.Tensor]
"""The tensors of one layer, by what follows the layer's name in the file."""


@dataclass(frozen=True)
class Factors:
    """One layer of one adapter: ΔW = scale · up · down.

    Attributes:
        down: A, (rank, in).
        up: B, (out, rank).
        scale: α/r, or α/√r for rsLoRA.
        magnitude: m of DoRA, (out,); None without DoRA.
        bias: of B (`lora_bias`), (out,), scaled as B is; None without.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> torch.Tensor:
        """ΔW of the product, (out, in) in float64; DoRA's stretching is not in it."""
        return self.scale * (self.up.double() @ self.down.double())


@dataclass(frozen=True)
class Surroundings:
    """What a layer needs beside its own tensors.

    Attributes:
        shared: tensors that all layers of the file share.
        width: inputs of a layer, read from the base model.
    """

    shared: Parts
    width: Callable[[str], int]


Adapter = Mapping[str, Factors]
"""Layer name inside the base model -> its factors."""


def summed(parts: Sequence[tuple[Factors, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(down (Σr, in), up (out, Σr)) in float64 with up · down = Σ weight · ΔW; of more ranks than the matrix has, dense.

    A sum of rank above min(out, in) is multiplied out: one factor is then the matrix, the other the identity.
    """
    down = torch.cat([factors.down.double() for factors, _ in parts], dim=0)
    up = torch.cat([factors.up.double() * (weight * factors.scale) for factors, weight in parts], dim=1)
    return thin(down, up)


def thin(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product with at most min(out, in) ranks."""
    out, wide, rank = up.shape[0], down.shape[1], down.shape[0]
    if rank <= min(out, wide):
        return down, up
    dense = up @ down
    if out <= wide:
        return dense, torch.eye(out, dtype=dense.dtype)
    return torch.eye(wide, dtype=dense.dtype), dense


def merge_factors(adapters: Sequence[tuple[Adapter, float]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The soup's factors by layer: (down, up) with up · down = Σ weight · ΔW. A layer that an adapter lacks has ΔW = 0."""
    layers = sorted({layer for adapter, _ in adapters for layer in adapter})
    return {layer: summed([(adapter[layer], w) for adapter, w in adapters if layer in adapter]) for layer in layers}


def merged_bias(parts: Sequence[tuple[Factors, float]]) -> torch.Tensor | None:
    """Σ weight · scale · bias of B, (out,) in float64; None where no part has one."""
    biases = [weight * factors.scale * factors.bias.double() for factors, weight in parts if factors.bias is not None]
    return torch.stack(biases).sum(dim=0) if biases else None


def scaling(config: Mapping[str, Any], layer: str) -> tuple[int, float]:
    """(rank, scale) that a configuration gives a layer, its rank and alpha patterns read as PEFT reads them."""
    rank = int(_by_pattern(config.get("rank_pattern"), layer, config["r"]))
    alpha = float(_by_pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha", config.get("alpha"))))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def lora(config: Mapping[str, Any], layer: str, parts: Parts, around: Surroundings) -> Factors:
    """LoRA, rsLoRA and DoRA.

    Raises:
        ValueError: if tensors are missing or don't fit the configuration.
    """
    rank, scale = scaling(config, layer)
    down, up = _both(parts, "lora_A.weight", "lora_B.weight")
    if down.shape[0] != rank or up.shape[1] != rank:
        raise ValueError(f"{_shapes(parts)}, but adapter_config.json says rank {rank}")
    magnitude = parts.get("lora_magnitude_vector", parts.get("lora_magnitude_vector.weight"))
    if magnitude is not None and not config.get("use_dora"):
        raise ValueError("a lora_magnitude_vector, but adapter_config.json does not say use_dora")
    if config.get("use_dora") and (magnitude is None or magnitude.shape != (up.shape[0],)):
        raise ValueError("no magnitude that fits, but adapter_config.json says use_dora")
    return Factors(down, up, scale, magnitude, parts.get("lora_B.bias"))


def vera(config: Mapping[str, Any], layer: str, parts: Parts, around: Surroundings) -> Factors:
    """VeRA; the shared matrices are cut to the layer's size.

    Raises:
        ValueError: if the shared matrices are not in the file.
    """
    if set(around.shared) != {"vera_A", "vera_B"}:
        raise ValueError("no vera_A and vera_B; save it with save_projection: true")
    rows, columns = _both(parts, "vera_lambda_b", "vera_lambda_d")
    down = around.shared["vera_A"][:, : around.width(layer)].double()
    up = around.shared["vera_B"][: len(rows)].double()
    return Factors(columns.double()[:, None] * down, rows.double()[:, None] * up, 1.0)


def loha(config: Mapping[str, Any], layer: str, parts: Parts, around: Surroundings) -> Factors:
    """LoHa: the columns of `up` and the rows of `down` are all pairs.

    Raises:
        ValueError: if tensors are missing or the layer is a convolution.
    """
    if "hada_t1" in parts:
        raise ValueError("a Tucker core of a convolution")
    up1, down1 = _both(parts, "hada_w1_a", "hada_w1_b")
    up2, down2 = _both(parts, "hada_w2_a", "hada_w2_b")
    up = torch.einsum("ip,iq->ipq", up1.double(), up2.double()).flatten(1)
    down = torch.einsum("pj,qj->pqj", down1.double(), down2.double()).flatten(0, 1)
    return Factors(*thin(down, up), scaling(config, layer)[1])


def lokr(config: Mapping[str, Any], layer: str, parts: Parts, around: Surroundings) -> Factors:
    """LoKr: a Kronecker product of products is a product of Kronecker products.

    Raises:
        ValueError: if tensors are missing or the layer is a convolution.
    """
    if "lokr_t2" in parts or any(tensor.dim() != 2 for tensor in parts.values()):
        raise ValueError("a kernel of a convolution")
    left_down, left_up = _kronecker_side(parts, "lokr_w1")
    right_down, right_up = _kronecker_side(parts, "lokr_w2")
    down, up = torch.kron(left_down, right_down), torch.kron(left_up, right_up)
    return Factors(*thin(down, up), scaling(config, layer)[1])


FAMILIES: dict[str, Callable[[Mapping[str, Any], str, Parts, Surroundings], Factors]] = {
    "LORA": lora,
    "VERA": vera,
    "LOHA": loha,
    "LOKR": lokr,
}
"""PEFT type -> what makes factors of a layer's tensors."""


def _kronecker_side(parts: Parts, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if name in parts:
        whole = parts[name].double()
        return thin(whole, torch.eye(whole.shape[0], dtype=whole.dtype))
    up, down = _both(parts, f"{name}_a", f"{name}_b")
    return thin(down.double(), up.double())


def _both(parts: Parts, first: str, second: str) -> tuple[torch.Tensor, torch.Tensor]:
    if first not in parts or second not in parts:
        raise ValueError(f"{_shapes(parts)}, but needs {first} and {second}")
    return parts[first], parts[second]


def _shapes(parts: Parts) -> str:
    return str({name: tuple(tensor.shape) for name, tensor in sorted(parts.items())})


def _by_pattern(pattern: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return default
