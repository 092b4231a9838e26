"""A curve of low loss between two models, found by training its bend: mode connectivity beyond the straight line.

Source: Garipov et al., "Loss surfaces, mode connectivity, and fast ensembling of DNNs" (NeurIPS 2018, arXiv 1802.10026): the
quadratic Bézier curve φ(t) = (1 - t)²·θ₁ + 2t(1 - t)·θ + t²·θ₂ with the bend θ trained on E[L(φ(t))], t uniform on (0, 1),
from the midpoint on. For LoRA the ends are changes ΔW = s·B·A of one base, and the bend is a product of their ranks' sum that
begins as their mean: the curve then stays among adapters. Left out: the polygonal chain, batch normalisation (language
models have none), training time that grows with the model until the curve's loss stands still: `steps` ends it.

Example:
    >>> curve = Curve(config, [Path("a"), Path("b")])
    >>> curve.train(rows, steps=100)
    >>> curve.score(0.5, held_out).value
    1.93
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.soups.bases import BaseTensors
from pipelines.soups.learned import Nats
from pipelines.soups.mixtures import stacked_adapter
from pipelines.stage import UserError

if TYPE_CHECKING:
    from evaluators.base import Example, Score
    from pipelines.config import FineTuneConfig
    from pipelines.finetune.data import Encoded

Tensors = dict[str, torch.Tensor]


class Curve:
    """The curve and the model that runs it.

    Args:
        config: base model, tokens a row, batch and precision.
        folders: the two ends, both full models or both LoRA adapters on the configuration's base model.
        cache: where converted base models are kept.
        device: `cpu` or `cuda`.

    Raises:
        UserError: if the ends don't fit each other, or are adapters of another kind than LoRA.
    """

    def __init__(
        self, config: FineTuneConfig, folders: Sequence[Path], cache: str | None = None, device: str = "cpu"
    ) -> None:
        from pipelines.finetune.model import BaseModels

        self.config, self.device = config, device
        adapters = (folders[0] / "adapter_config.json").is_file()
        source, code = config.base_model if adapters else str(folders[0]), config.trust_remote_code
        loaded = BaseModels(cache).load(source, trust_remote_code=code, device=device)
        self.tokenizer = loaded.tokenizer
        self._ends: tuple[Tensors, Tensors] | None = None
        self._owner: Tensors = {}
        if adapters:
            self.model = self._join(loaded.model, folders)
        else:
            self.model = loaded.model
            self._ends = (self._read(folders[0]), self._read(folders[1]))
            self.bend = {
                name: (a + b) / 2 for (name, a), b in zip(self._ends[0].items(), self._ends[1].values(), strict=True)
            }
        self.model.requires_grad_(False)

    def at(self, t: float) -> Tensors:
        """Parameters of the model at a point of the curve, by their names."""
        weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
        if self._ends is not None:
            left, right = self._ends
            return {
                n: weights[0] * left[n] + weights[1] * bend + weights[2] * right[n] for n, bend in self.bend.items()
            }
        made = {}
        for name, tensor in self.bend.items():
            owner = self._owner[name]
            own = torch.where(owner == 1, tensor, tensor.detach())
            made[name] = own * torch.tensor(weights, device=tensor.device)[owner] if ".lora_B." in name else own
        return made

    def train(self, rows: Sequence[Example], *, steps: int, learning_rate: float = 1e-4, seed: int = 0) -> list[float]:
        """Train the bend; nats a token of every step, each at its own t.

        Raises:
            UserError: if no row has a token that is trained on.
        """
        from pipelines.finetune.data import encode
        from pipelines.lm import autocast

        encoded = [
            row for row in (encode(row, self.tokenizer, self.config.sequence_len) for row in rows) if row.trained
        ]
        if not encoded:
            raise UserError("no row that is to train the curve has a token that is trained on")
        for tensor in self.bend.values():
            tensor.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.bend.values(), lr=learning_rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        nats, losses = Nats(self.model), []
        for batch in self._batches(encoded, steps, generator):
            t = float(torch.rand((), generator=generator))
            parameters = {f"model.{name}": value for name, value in self.at(t).items()}
            with autocast(self.device, self.config.precision):
                loss, tokens = torch.func.functional_call(nats, parameters, batch)
            optimizer.zero_grad()
            (loss / tokens).backward()
            optimizer.step()
            losses.append(float(loss.detach()) / tokens)
        for tensor in self.bend.values():
            tensor.requires_grad_(False)
        return losses

    def score(self, t: float, rows: Sequence[Example]) -> Score:
        """`loss` of a point of the curve on rows, with items."""
        from evaluators.perplexity import row_losses
        from pipelines.lm import LocalLanguageModel

        with torch.no_grad():
            places = dict(self.model.named_parameters())
            for name, value in self.at(t).items():
                places[name].copy_(value)
        lm = LocalLanguageModel(
            self.model,
            self.tokenizer,
            batch_size=self.config.eval_batch_size,
            sequence_len=self.config.sequence_len,
            precision=self.config.precision,
        )
        return row_losses("loss", lm, rows, "select")

    def _batches(self, rows: Sequence[Encoded], steps: int, generator: torch.Generator) -> Iterator[Any]:
        """So many batches, the rows in a new order whenever all have been seen."""
        from pipelines.lm import pad

        order: list[int] = []
        for _ in range(steps):
            if not order:
                order = torch.randperm(len(rows), generator=generator).tolist()
            taken, order = order[: self.config.eval_batch_size], order[self.config.eval_batch_size :]
            batch = pad([rows[place] for place in taken], self.tokenizer.pad_token_id)
            yield tuple(tensor.to(self.device) for tensor in batch)

    def _read(self, folder: Path) -> Tensors:
        """A model's parameters in float32; a tied one once."""
        found = {}
        with BaseTensors(str(folder)) as files:
            for name, place in self.model.named_parameters():
                if not files.has(name) or files.shape(name) != tuple(place.shape):
                    raise UserError(f"{folder} has no {name} of shape {tuple(place.shape)}: not of the other's kind")
                found[name] = files.tensor(name).to(self.device, torch.float32)
        return found

    def _join(self, model: Any, folders: Sequence[Path]) -> Any:
        """Both adapters and their mean as one on the model: A, the bend, B."""
        from pipelines.soups import merge

        with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
            mean = Path(own) / "mean"
            merge({"ingredients": [[str(folder), 0.5] for folder in folders], "out": str(mean), "cache": None})
            joined, owner = stacked_adapter(model, [folders[0], mean, folders[1]])
        self.bend = {}
        for name, value in joined.named_parameters():
            if ".lora_B." in name:
                self.bend[name] = value.detach().clone() * 3
                self._owner[name] = owner[name].to(value.device)
            elif ".lora_A." in name:
                self.bend[name] = value.detach().clone()
                self._owner[name] = owner[name.replace(".lora_A.", ".lora_B.")].to(value.device)[:, None]
        return joined
