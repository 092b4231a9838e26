"""How two checkpoints lie to each other: their changes, what they see, the path between them, and a curve around a barrier.

Four measurements, each with its numbers or with the reason why it can't be had:

- the cosine between the changes that both made to one base (`cosines.py`);
- linear CKA of their hidden states, layer by layer (`similarity.py`);
- the loss on the straight path between them, its knots and its barrier (`recipes/path.py`);
- where it is asked for, the loss along a trained Bézier curve (`curve.py`).

Mode connectivity is summed up as mc = (L(A) + L(B))/2 - L(t*), t* being where that is largest in size (Yang et al.,
"Taxonomizing local versus global structure in neural network loss landscapes", NeurIPS 2021, arXiv 2107.11228): below 0 a
barrier parts the two, near 0 they are connected, above 0 there is something better between them than both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.base import Example, Score
from evaluators.statistics import contrast
from pipelines.finetune.model import resolve, tokenizer_hash
from pipelines.finetune.sft import SFTPipeline
from pipelines.soups.adapter_files import CONFIG
from pipelines.soups.checks import base_problems, recorded_in, tokenizer_of, weight_problems
from pipelines.soups.cosines import measure
from pipelines.soups.masks import mask_hash
from pipelines.soups.recipes.path import walk_path
from pipelines.stage import Devices, EvaluationJob, ModelSource, Services, UserError

if TYPE_CHECKING:
    from pipelines.config import FineTuneConfig

NO_ROWS = "it needs rows"


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: as the user wrote it.
        folder: an adapter, or a full model.
        base: the model that it was trained on; None where that is not known.
    """

    name: str
    folder: Path
    base: str | None

    @property
    def adapter(self) -> bool:
        """Whether it is an adapter on its base."""
        return (self.folder / CONFIG).is_file()

    @property
    def source(self) -> ModelSource:
        """As pipelines load it."""
        return ModelSource(str(self.base), str(self.folder)) if self.adapter else ModelSource(str(self.folder))


class Diagnosis:
    """Two checkpoints that are compared.

    Args:
        left: A.
        right: B.
        config: tokens a row, batch and precision.
        rows: what they are run on; empty leaves out all that needs rows.
        cache: where converted base models are kept.
        devices: where they run.

    Raises:
        UserError: if nothing of them can be compared: broken weights, or different tokenizers.
    """

    def __init__(
        self, left: Side, right: Side, config: FineTuneConfig, rows: Sequence[Example], cache: str, devices: Devices
    ) -> None:
        self.pipeline = SFTPipeline()
        self.left, self.right, self.rows, self.cache, self.devices = left, right, tuple(rows), Path(cache), devices
        self.config = config.model_copy(update={"base_model": left.source.base_model})
        names, folders = [left.name, right.name], [left.folder, right.folder]
        problems = weight_problems(names, folders)
        tokens = [_tokenizers(side, self.cache) for side in (left, right)]
        if all(tokens) and not tokens[0] & tokens[1]:
            problems.append(
                f"{left.name} and {right.name} have different tokenizers: neither their losses nor what they see can be "
                "compared"
            )
        if problems:
            raise UserError("; ".join(problems))
        self.apart = self._apart()
        self.other_base = base_problems(names, folders, [side.base or "" for side in (left, right)], self.cache)

    def record(self, curve_steps: int = 0, curve_rate: float = 1e-4) -> dict[str, Any]:
        """All measurements, as JSON: `a`, `b`, `rows`, `deltas`, `cka`, `path`, and `curve` if it has steps.

        Args:
            curve_steps: of the training of the curve; its half of the rows is then left out of all measurements.
            curve_rate: learning rate of the curve.
        """
        trained, measured = halves(self.rows) if curve_steps else ((), self.rows)
        found: dict[str, Any] = {
            "a": {"name": self.left.name, "folder": str(self.left.folder), "base": self.left.base},
            "b": {"name": self.right.name, "folder": str(self.right.folder), "base": self.right.base},
            "rows": len(measured),
            "deltas": self.deltas(),
            "cka": self.cka(measured),
            "path": self.path(measured),
        }
        if curve_steps:
            found["curve"] = self.curve(trained, measured, curve_steps, curve_rate)
        return found

    def deltas(self) -> dict[str, Any]:
        """`{cosine, norms}`, or `{missing}`."""
        why = [*self.other_base, *([self.apart] if self.apart and self.left.adapter != self.right.adapter else [])]
        if why:
            return {"missing": "; ".join(why)}
        base = self.left.base or self.right.base
        why = [] if base is None else self._of_another_base(base)
        if why:
            return {"missing": "; ".join(why)}
        folders = {"a": str(self.left.folder), "b": str(self.right.folder)}
        found = measure({"folders": folders, "base": base, "cache": str(self.cache)})
        if "missing" in found:
            return found
        return {"cosine": found["cosines"][0][1], "norms": found["norms"]}

    def cka(self, rows: Sequence[Example]) -> dict[str, Any]:
        """`{layers, tokens}`, layer 0 being the embeddings, or `{missing}`."""
        from pipelines.soups.similarity import layer_cka

        if not rows:
            return {"missing": NO_ROWS}
        states = [self._states(side, rows) for side in (self.left, self.right)]
        if len(states[0]) != len(states[1]):
            return {
                "missing": f"{self.left.name} has {len(states[0]) - 1} layers and {self.right.name} {len(states[1]) - 1}"
            }
        values = [_number(value) for value in layer_cka(*states)]
        return {"layers": values, "tokens": len(states[0][0])}

    def path(self, rows: Sequence[Example]) -> dict[str, Any]:
        """The straight path (`walked`), or `{missing}` with the `ends`."""
        if not rows:
            return {"missing": NO_ROWS}

        def scored(source: ModelSource) -> Score:
            services = Services(cache=str(self.cache))
            entries = ({"type": "loss"},)
            job = EvaluationJob(
                self.config.model_dump(mode="json"), source, "select", entries, self.devices, services, tuple(rows)
            )
            return self.pipeline.evaluate(job)[0]

        def at(t: float) -> Score:
            parts = ((str(self.left.folder), 1.0 - t), (str(self.right.folder), t))
            return scored(ModelSource(self.config.base_model, blend=tuple(part for part in parts if part[1])))

        if why := self._no_path():
            return {
                "missing": why,
                "ends": [_knot(t, scored(s.source)) for t, s in ((0.0, self.left), (1.0, self.right))],
            }
        return walked(at)

    def curve(self, trained: Sequence[Example], rows: Sequence[Example], steps: int, rate: float) -> dict[str, Any]:
        """The trained curve (`walked`, and `steps`), or `{missing}`."""
        from pipelines.soups.curve import Curve

        why = self._no_path()
        if why or not (trained and rows):
            return {"missing": why or NO_ROWS}
        try:
            curve = Curve(self.config, [self.left.folder, self.right.folder], str(self.cache), self._device)
            curve.train(trained, steps=steps, learning_rate=rate)
        except UserError as error:
            return {"missing": str(error).removeprefix("no soup: ")}
        return {"steps": steps, "trained_on": len(trained), **walked(lambda t: curve.score(t, rows))}

    def _apart(self) -> str:
        """Why there is no path, whatever the bases; empty where there is one."""
        if self.left.adapter != self.right.adapter:
            words = [
                f"{side.name} is {'an adapter' if side.adapter else 'a full model'}" for side in (self.left, self.right)
            ]
            return " and ".join(words)
        masks = [mask_hash(side.folder) for side in (self.left, self.right)]
        if masks[0] != masks[1]:
            told = " and ".join(f"{mask[:12] if mask else 'dense'}" for mask in masks)
            return f"their masks of pruned weights differ ({told})"
        shapes = [{} if side.adapter else _shapes(side) for side in (self.left, self.right)]
        if shapes[0] != shapes[1]:
            name = next(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
            return f"they are not of one architecture: {name} differs"
        return ""

    def _of_another_base(self, base: str) -> list[str]:
        """What checkpoints recorded of their base, where it is not the one they are to be compared with."""
        from pipelines.weights import content_hash

        sides = [(side, recorded_in(side.folder, "base_hash")) for side in (self.left, self.right)]
        if not any(known for _, known in sides):
            return []
        own = content_hash(resolve(base, self.cache))
        return [
            f"{side.name} was trained on another base model than {base}"
            for side, known in sides
            if known not in (None, own)
        ]

    def _states(self, side: Side, rows: Sequence[Example]) -> list[Any]:
        from pipelines.finetune.data import encode
        from pipelines.soups.similarity import hidden_states, spread

        model, tokenizer = _loaded(side, str(self.cache), self._device, self.config.trust_remote_code)
        ids = [encode(row, tokenizer, self.config.sequence_len).ids for row in rows]
        places = spread([len(one) for one in ids])
        return hidden_states(model, ids, places, tokenizer.pad_token_id, self.config.eval_batch_size)

    @property
    def _device(self) -> str:
        return "cuda" if self.devices.gpus else "cpu"

    def _no_path(self) -> str:
        """Why there is no path between the two; empty where there is one."""
        return self.apart or ("; ".join(self.other_base) if self.left.adapter else "")


def walked(at: Callable[[float], Score], evaluations: int = 15) -> dict[str, Any]:
    """The loss along a path whose point t in [0, 1] is scored by `at`.

    Returns:
        `knots` ([t, loss, se]), `barrier`, `at`, `se` and `allowed` as `recipes.path.Path` has them, `passes`, and `mc` with
        its paired `mc_se` and `mc_at`.
    """
    known: dict[float, Score] = {0.0: at(0.0), 1.0: at(1.0)}

    def look(t: float) -> Score:
        known[t] = at(t)
        return known[t]

    def rise(t: float, left: float | None = None) -> tuple[float, float]:
        left = 1.0 - t if left is None else left
        sides = [(1.0, known[t]), (-left, known[0.0]), (left - 1.0, known[1.0])]
        item_set = known[t].item_set
        assert item_set is not None, "a loss has items"
        found = contrast([(factor, score.items) for factor, score in sides if score.items is not None], item_set)
        return found.difference, found.se

    path = walk_path(look, (known[0.0], known[1.0]), rise=rise, evaluations=evaluations)
    inner = {t: rise(t, 0.5) for t in known if 0.0 < t < 1.0}
    furthest = max(inner, key=lambda t: abs(inner[t][0]) if math.isfinite(inner[t][0]) else math.inf)
    return {
        "knots": [_knot(t, known[t]) for t in sorted(known)],
        "barrier": _number(path.barrier),
        "at": path.at,
        "se": _number(path.se),
        "allowed": _number(path.allowed),
        "passes": path.passes,
        "mc": _number(-inner[furthest][0]),
        "mc_se": _number(inner[furthest][1]),
        "mc_at": furthest,
    }


def halves(rows: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Two halves that share no group, by its hash."""
    parts: tuple[list[Example], list[Example]] = ([], [])
    for row in rows:
        parts[hashlib.sha256(str(row.group).encode()).digest()[0] % 2].append(row)
    return tuple(parts[0]), tuple(parts[1])


def _loaded(side: Side, cache: str, device: str, code: bool) -> tuple[Any, Any]:
    """A side's model, in evaluation mode, and its tokenizer."""
    from pipelines.finetune.adapters import attach
    from pipelines.finetune.model import BaseModels

    loaded = BaseModels(cache).load(side.source.base_model, trust_remote_code=code, device=device)
    return (attach(loaded.model, side.folder) if side.adapter else loaded.model), loaded.tokenizer


def _tokenizers(side: Side, cache: Path) -> set[str]:
    """Hashes that a side's tokenizer goes by: of its own files, of its base's, and as its checkpoint recorded it."""
    hashes = {tokenizer_of(side.folder), recorded_in(side.folder, "tokenizer_hash")}
    if side.adapter and side.base:
        hashes.add(tokenizer_hash(resolve(side.base, cache)))
    return {one for one in hashes if one is not None}


def _shapes(side: Side) -> dict[str, tuple[int, ...]]:
    from pipelines.soups.bases import BaseTensors

    with BaseTensors(str(side.folder)) as tensors:
        return {name: tensors.shape(name) for name in tensors.names}


def _knot(t: float, score: Score) -> list[float | None]:
    return [t, _number(score.value), _number(score.se)]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
