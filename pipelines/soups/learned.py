"""Weights of a soup's ingredients, trained by gradient: one set for all, one a layer, or one a tensor.

Source: Wortsman et al., "Model soups" (ICML 2022, arXiv 2203.05482), appendix I, and the authors' `learned_bylayer.py`: α =
softmax(β·a) over the models, a = 0 at first (uniform), β = 1 a learned temperature; AdamW, lr .05, no decay. For adapters
it is CAT of Prabhakar et al. (arXiv 2410.13025): y += Σᵢ αᵢ sᵢ BᵢAᵢ x, exact and at the cost of one adapter of rank Σr. The
authors hold all models in memory; here they are read where they lie (`mixtures.py`), and memory holds two models in
float32, whatever their number, and the gradients of one. Forward passes go through `torch.func.functional_call`; nothing
but a and β has a gradient. Left out: training on anything but the loss.

The weights of the best epoch (the uniform ones count as one) are kept; training ends after `patience` epochs without a
better one. With equal seeds and threads the answer is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.soups.mixtures import Mixture, load_mixture
from pipelines.stage import UserError

if TYPE_CHECKING:
    from pipelines.config import FineTuneConfig
    from pipelines.finetune.data import Encoded


def learn(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Train a soup's weights on a split; what `sweeps/bench.py` has called on a worker.

    Args:
        payload: `config` (a trial's resolved configuration), `folders` (the ingredients), `split`, `settings` (`per`,
            `epochs`, `learning_rate`, `temperature`, `patience`, `seed`) and `cache`.

    Returns:
        `coefficients` (set -> one weight an ingredient), `losses` (nats a token before the first and after each epoch),
        `temperature` and `epochs`, how many were run.

    Raises:
        UserError: if the ingredients can't be mixed by weights.
    """
    from pipelines.config import FineTuneConfig, parse_pipeline

    config = parse_pipeline(payload["config"])
    if not isinstance(config, FineTuneConfig):
        raise UserError(f"no soup: method: learned can train weights for pipeline type sft, not {config.type}")
    folders, settings = [Path(folder) for folder in payload["folders"]], payload["settings"]
    mixture = load_mixture(config, folders, settings["per"], payload.get("cache"))
    return _Training(mixture, len(folders), config, _rows(config, mixture.tokenizer, payload["split"]), settings).go()


class _Training:
    """Softmax weights of a mixture, their optimizer, and the rows they are trained on.

    Args:
        mixture: the model as a function of weights.
        count: of its ingredients.
        config: a trial's, for precision and batch size.
        rows: to train on.
        settings: as `learn` has them.
    """

    def __init__(
        self, mixture: Mixture, count: int, config: FineTuneConfig, rows: Sequence[Encoded], settings: Mapping[str, Any]
    ) -> None:
        self._mixture, self._config, self._rows, self._settings = mixture, config, rows, settings
        self._nats = Nats(mixture.model)
        self._groups = sorted(set(mixture.groups.values()))
        self._logits = torch.zeros(len(self._groups), count, requires_grad=True)
        self._beta = torch.ones((), requires_grad=bool(settings["temperature"]))
        trained = [self._logits, self._beta] if settings["temperature"] else [self._logits]
        self._optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"], weight_decay=0.0)

    def go(self) -> dict[str, Any]:
        """Train until there are enough epochs, or `patience` of them brought nothing; as `learn` returns."""
        losses, best, temperature, waited = [self._whole()], self._alpha(), 1.0, 0
        for epoch in range(self._settings["epochs"]):
            self._epoch(self._settings["seed"] + epoch)
            losses.append(self._whole())
            if losses[-1] < min(losses[:-1]):
                best, temperature, waited = self._alpha(), float(self._beta.detach()), 0
                continue
            waited += 1
            if waited == self._settings["patience"]:
                break
        return {
            "coefficients": {name: _rounded(weights) for name, weights in best.items()},
            "losses": losses,
            "temperature": temperature,
            "epochs": len(losses) - 1,
        }

    def _alpha(self) -> dict[str, torch.Tensor]:
        return dict(zip(self._groups, torch.softmax(self._beta * self._logits, dim=1), strict=True))

    def _epoch(self, seed: int) -> None:
        for batch in self._batches(seed):
            loss, tokens = self._run(batch)
            self._optimizer.zero_grad()
            (loss / tokens).backward()
            self._optimizer.step()

    def _whole(self) -> float:
        """Nats a token over all rows."""
        with torch.no_grad():
            done = [self._run(batch) for batch in self._batches(None)]
        return float(sum(loss.double() for loss, _ in done)) / sum(tokens for _, tokens in done)

    def _run(self, batch: Any) -> tuple[torch.Tensor, int]:
        """Summed nats of a batch, and its tokens."""
        from pipelines.lm import autocast

        mixed = {f"model.{name}": value for name, value in self._mixture.parameters(self._alpha()).items()}
        with autocast("cpu", self._config.precision):
            found: tuple[torch.Tensor, int] = torch.func.functional_call(self._nats, mixed, batch)
        return found

    def _batches(self, seed: int | None) -> Iterator[Any]:
        """Padded batches; in a seeded order, or without a seed by length."""
        from pipelines.lm import pad

        rows, size = self._rows, self._config.eval_batch_size
        if seed is None:
            order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
        else:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        for start in range(0, len(order), size):
            yield pad([rows[place] for place in order[start : start + size]], self._mixture.tokenizer.pad_token_id)


class Nats(torch.nn.Module):
    """Summed loss of a batch, and its tokens, as a module for `functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, mask: Any, labels: Any) -> tuple[torch.Tensor, int]:
        """Of token ids, attention mask and labels, each (batch, seq)."""
        from pipelines.lm import trained_logits

        logits, targets, _ = trained_logits(self.model, ids, mask, labels)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), len(targets)


def _rows(config: FineTuneConfig, tokenizer: Any, split: str) -> list[Encoded]:
    """The rows of a split that have a token to train on."""
    from pipelines.finetune.data import encode
    from pipelines.splits import load_splits

    rows = load_splits(config.datasets, config.seed_data).rows(split)
    encoded = [row for row in (encode(row, tokenizer, config.sequence_len) for row in rows) if row.trained]
    if not encoded:
        raise UserError(f"no soup: no row of {split} has a token that is trained on")
    return encoded


def _rounded(weights: torch.Tensor) -> list[float]:
    """Weights as the ledger holds them; they sum to one."""
    values = [round(float(weight), 6) for weight in weights.detach().double()]
    values[0] = round(1.0 - sum(values[1:]), 6)
    return values
