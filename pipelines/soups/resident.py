"""Trial soups of full models in memory: a float32 running sum beside the model that is scored.

A greedy soup tries the mean of k models taken and one more. With the sum S of the k kept, a trial costs one read of the new
model and no write: its sum is T = S + θ. Taking it makes T the new S, and refusing it needs no undoing, because S is never
touched. A point of the path between the mean and the new model, u·S + v·θ, is (u - v)·S + v·T, so the path and the trial
read the new model once together. The weights are rounded to the file's type and put into the model. The written way
(`pipelines.soups.merge`) sums wᵢθᵢ instead: both sum in float32, and differ by its rounding, at most a few parts in 10⁷
before the file's type rounds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pipelines.stage import UserError

Sums = dict[str, torch.Tensor]


class ResidentSum:
    """The model that trial soups are scored with.

    Args:
        model: of the ingredients' architecture; its weights are overwritten.

    Attributes:
        reads: models read so far.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.reads = 0
        self._places = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        self._taken: tuple[tuple[str, ...], Sums] = ((), {})
        self._trial: tuple[tuple[str, ...], Sums] = ((), {})
        self._kinds: dict[str, torch.dtype] = {}

    def apply(self, parts: Sequence[tuple[str, float]]) -> None:
        """Make the model the weighted average of full models.

        Args:
            parts: (folder, weight); the weights sum to one.

        Raises:
            UserError: if the models do not fit each other.
        """
        folders = tuple(folder for folder, _ in parts)
        weights = [weight for _, weight in parts]
        if len(set(weights[:-1])) > 1:
            sums: Sums = {}
            for folder, weight in parts:
                sums = self._plus(sums, folder, weight)
            self._put(sums.items())
            return
        if folders != self._trial[0]:
            before = folders[:-1]
            if before == self._trial[0]:
                self._taken = self._trial
            elif before != self._taken[0]:
                sums = {}
                for folder in before:
                    sums = self._plus(sums, folder, 1.0)
                self._taken = (before, sums)
            self._trial = (folders, self._plus(self._taken[1], folders[-1], 1.0))
        if len(set(weights)) == 1:
            self._put((name, value * (1.0 / len(folders))) for name, value in self._trial[1].items())
        else:
            inside, new = weights[0], weights[-1]
            kept, trial = self._taken[1], self._trial[1]
            self._put((name, value * new + kept[name] * (inside - new)) for name, value in trial.items())

    def _plus(self, sums: Sums, folder: str, weight: float) -> Sums:
        """Sums with a model added, read tensor by tensor; what was given is not touched."""
        self.reads += 1
        made: Sums = {}
        with ExitStack() as stack:
            for path in sorted(Path(folder).glob("model*.safetensors")):
                file = stack.enter_context(safe_open(str(path), framework="pt"))
                for name in file.keys():  # noqa: SIM118
                    place = self._places.get(name)
                    if place is None:
                        continue
                    tensor = file.get_tensor(name)
                    if tensor.shape != place.shape or (sums and name not in sums):
                        raise UserError(f"no soup: {name} of {folder} does not fit the other models")
                    self._kinds.setdefault(name, tensor.dtype)
                    wide = tensor.to(place.device, torch.float32)
                    made[name] = wide * weight if not sums else sums[name].add(wide, alpha=weight)
        if not made or (sums and made.keys() != sums.keys()):
            raise UserError(f"no soup: {folder} has other weights than the models before it")
        return made

    @torch.no_grad()
    def _put(self, values: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, value in values:
            self._places[name].copy_(value.to(self._kinds[name]))
