"""Why the product is averaged and not its factors: six LoRAs of one small network, and five ways to average them.

A three-layer network is trained on one task; six rank-8 LoRAs with other learning rates, lengths and orders of the data
are trained from it on a neighbouring task. The table gives test accuracies: the single runs, the best of them by
validation, the exact soup, the exact soup cut to rank 8, the factors A and B averaged apart, and PEFT's
`add_weighted_adapter` with `linear` and weights that sum to one; once where all runs began with one random A, once where
each had its own.

Two regimes, for what a soup gains depends on how its ingredients differ: `enough rows`, where runs end alike but for the
noise of their last steps, and `few rows`, where longer runs overfit and one run stands out, which averaging gives away.

    python benchmarks/lora_soup_toy.py [--seeds 3]
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn

from pipelines.soups.lora import merge_adapters

WIDTH, CLASSES, RANK = 24, 6, 8


@dataclass(frozen=True)
class Regime:
    """How much there is to learn from, and how.

    Attributes:
        rows: of train, a fifth of them with a class drawn anew.
        runs: learning rate and epochs of each.
    """

    rows: int
    runs: tuple[tuple[float, int], ...]


REGIMES = {
    "enough rows": Regime(4000, tuple((rate, epochs) for epochs in (8, 12) for rate in (1e-2, 1.5e-2, 2e-2))),
    "few rows": Regime(600, tuple((rate, epochs) for epochs in (30, 50) for rate in (3e-3, 5e-3, 8e-3))),
}

Rows = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """Three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(WIDTH, 64), nn.Linear(64, 64), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return logits


def rows(teacher: nn.Module, count: int, noise: float = 0.0) -> Rows:
    """Random inputs and the teacher's classes, a share of them drawn anew."""
    x = torch.randn(count, WIDTH)
    with torch.no_grad():
        y = teacher(x).argmax(-1)
    drawn = torch.rand(count) < noise
    return x, torch.where(drawn, torch.randint(CLASSES, (count,)), y)


def fit(model: nn.Module, data: Rows, rate: float, epochs: int, batch: int = 150) -> None:
    """Adam on cross-entropy over what requires a gradient."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(epochs):
        for part in torch.randperm(len(data[0])).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data[0][part]), data[1][part]).backward()
            optimizer.step()


def accuracy(model: nn.Module, data: Rows) -> float:
    """Share of rows that are right."""
    with torch.no_grad():
        return float((model(data[0]).argmax(-1) == data[1]).float().mean())


def tasks(seed: int, count: int) -> tuple[Net, Rows, Rows, Rows]:
    """A trained base, and train, validation and test rows of the neighbouring task."""
    torch.manual_seed(seed)
    teacher, base = Net(), Net()
    for parameter in teacher.parameters():
        parameter.data *= 2
    fit(base, rows(teacher, 4000), 2e-3, 15)
    neighbour = copy.deepcopy(teacher)
    for parameter in neighbour.parameters():
        parameter.data += 0.6 * parameter.std() * torch.randn_like(parameter)
    return base, rows(neighbour, count, noise=0.2), rows(neighbour, 400), rows(neighbour, 4000)


def train(base: Net, data: Rows, folder: Path, regime: Regime, run: int, shared: bool, seed: int) -> Path:
    """One LoRA, saved by PEFT."""
    rate, epochs = regime.runs[run]
    torch.manual_seed(1000 + seed + (0 if shared else 1 + run))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["a", "b", "c"])
    model = get_peft_model(copy.deepcopy(base), config)
    torch.manual_seed(2000 + 10 * seed + run)
    fit(model, data, rate, epochs)
    model.save_pretrained(str(folder))
    return folder


def factors_apart(folders: list[Path], out: Path) -> None:
    """The average of the A's and of the B's, as LoraHub and others make it."""
    out.mkdir()
    tensors = [load_file(str(folder / "adapter_model.safetensors")) for folder in folders]
    mean = {name: torch.stack([one[name] for one in tensors]).mean(0) for name in tensors[0]}
    save_file(mean, str(out / "adapter_model.safetensors"))
    (out / "adapter_config.json").write_text((folders[0] / "adapter_config.json").read_text())


def peft_linear(base: Net, folders: list[Path]) -> Any:
    """PEFT's own weighted adapter, weights that sum to one."""
    names = [f"run{at}" for at in range(len(folders))]
    model = PeftModel.from_pretrained(copy.deepcopy(base), str(folders[0]), adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    model.add_weighted_adapter(names, [1 / len(names)] * len(names), "soup", combination_type="linear")
    model.set_adapter("soup")
    return model.eval()


def compare(regime: Regime, seed: int, shared: bool) -> dict[str, float]:
    """Test accuracies of one repetition."""
    base, data, validation, test = tasks(seed, regime.rows)
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(work)
        folders = [train(base, data, root / f"run-{run}", regime, run, shared, seed) for run in range(len(regime.runs))]

        def adapted(folder: Path) -> nn.Module:
            model: nn.Module = PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()
            return model

        mixture = [(folder, 1 / len(folders)) for folder in folders]
        merge_adapters(mixture, root / "exact")
        merge_adapters(mixture, root / "small", rank=RANK)
        factors_apart(folders, root / "apart")
        singles = [(accuracy(adapted(folder), validation), accuracy(adapted(folder), test)) for folder in folders]
        return {
            "base": accuracy(base, test),
            "mean single": statistics.fmean(score for _, score in singles),
            "best single": max(singles)[1],
            "exact soup": accuracy(adapted(root / "exact"), test),
            f"cut to rank {RANK}": accuracy(adapted(root / "small"), test),
            "factors apart": accuracy(adapted(root / "apart"), test),
            "PEFT linear": accuracy(peft_linear(base, folders), test),
        }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="repetitions with other data and teachers")
    seeds = parser.parse_args().seeds
    for name, regime in REGIMES.items():
        for shared in (True, False):
            table(
                f"{name}, {'one random A' if shared else 'each its own A'}",
                [compare(regime, s, shared) for s in range(seeds)],
            )


def table(title: str, found: list[dict[str, float]]) -> None:
    """Means over repetitions, and how far each is from the best single run of the same repetition."""
    print(f"{title}: mean of {len(found)} repetitions, 4000 test rows each; minus the best single run (95 %)")
    for name in found[0]:
        apart = [one[name] - one["best single"] for one in found]
        mean, spread = statistics.fmean(apart), statistics.stdev(apart) / math.sqrt(len(apart))
        reach = float(stats.t.ppf(0.975, len(apart) - 1)) * spread
        told = "" if name == "best single" else f"  {mean:+.3f} ± {reach:.3f}"
        print(f"  {name:<14} {statistics.fmean(one[name] for one in found):.3f}{told}", flush=True)


if __name__ == "__main__":
    main()
