"""What every evaluator speaks: scores with their error, item scores, and the language model seen from above.

Nothing here imports torch, ray or anything else of ours, and NumPy only when it sums up. An evaluator judges items one by one; summing up is one
function (`summarise`), so that every number of a sweep carries n and an error made the same way.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evaluators.answers import Judge

Direction = Literal["minimize", "maximize"]
Split = Literal["train", "tune", "select", "test"]
Messages = tuple[Mapping[str, str], ...]


class UserError(RuntimeError):
    """The user's file or data is at fault and a retry can't help; the message says what to do."""


@dataclass(frozen=True)
class ItemSet:
    """The items behind a vector of item scores, stored once in the ledger by its hash.

    Attributes:
        ids: one id an item, in the order of the vector.
        weights: what each item counts in the mean (tokens for a loss); `None` counts each once.
        groups: the unit that errors are clustered by (prompt hash or `group_by`); `None` means each item its own.
    """

    ids: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, other in (("weights", self.weights), ("groups", self.groups)):
            if other is not None and len(other) != len(self.ids):
                raise ValueError(f"{name} must have one entry an item, but got {len(other)} for {len(self.ids)} items")

    @property
    def hash(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON."""
        body = json.dumps([self.ids, self.weights, self.groups], separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Score:
    """One reported number with its error.

    Attributes:
        name: `<evaluator>[.<field>]`, without the split: `loss`, `exact_match`, `lm_eval.gsm8k`.
        split: which split it was measured on.
        value: the number; NaN when nothing could be scored.
        se: standard error in the unit of `value`; NaN when it can't be known.
        n: items scored.
        unscored: items that could not be scored (they are NaN in `items`).
        direction: owned by the evaluator.
        item_set: the items; `None` for a score that has none.
        items: (n + unscored,) float32, aligned to `item_set.ids`; NaN = unscored.
    """

    name: str
    split: Split
    value: float
    se: float
    n: int
    unscored: int
    direction: Direction
    item_set: ItemSet | None = None
    items: NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """`<split>/<name>`, the metric's full name."""
        return f"{self.split}/{self.name}"

    def record(self) -> dict[str, Any]:
        """JSON-ready, without the items (they live in a table of their own); NaN becomes null."""
        return {
            "name": self.name,
            "split": self.split,
            "value": self.value if math.isfinite(self.value) else _text(self.value),
            "se": self.se if math.isfinite(self.se) else None,
            "n": self.n,
            "unscored": self.unscored,
            "direction": self.direction,
            "item_set": self.item_set.hash if self.item_set else None,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Score:
        """The inverse of `record`; the items stay in the ledger (`Ledger.items`)."""
        value, se = record["value"], record["se"]
        return cls(
            name=record["name"],
            split=record["split"],
            value=float("nan") if value is None else float(value),
            se=float("nan") if se is None else float(se),
            n=record["n"],
            unscored=record["unscored"],
            direction=record["direction"],
        )


def _text(value: float) -> str | None:
    return None if math.isnan(value) else ("inf" if value > 0 else "-inf")


@dataclass(frozen=True)
class Report:
    """What a pipeline reports at one amount of its resource.

    Attributes:
        resource: steps, tokens or questions done since the run began (not since the lease began).
        scores: the evaluators' numbers.
        telemetry: numbers without an error: `train/loss`, `train/grad_norm`, `cost/seconds`, `cost/tokens_per_second`.
        checkpoint: folder name inside the attempt's folder (`checkpoint-30`), whole on disk; None without one.
    """

    resource: int
    scores: tuple[Score, ...] = ()
    telemetry: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str | None = None

    def score(self, key: str) -> Score | None:
        """The score whose `key` is the given full name, or None."""
        return next((s for s in self.scores if s.key == key), None)


@dataclass(frozen=True)
class Example:
    """One row of a dataset as pipelines and evaluators see it.

    Attributes:
        id: stable: hash of the row's content, the same in every trial.
        group: the unit splits and errors go by: hash of the prompt, or of the `group_by` field.
        prompt: text, or the chat messages before the answer; None for plain text rows.
        completion: the reference answer, or the whole text for plain text rows; the chosen answer of a pair.
        rejected: the worse answer of a pair; None for other rows.
        label: whether the completion is a good one, of an unpaired preference; None for other rows.
    """

    id: str
    group: str
    prompt: str | Messages | None
    completion: str
    rejected: str | None = None
    label: bool | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One text to generate. `temperature` 0 is greedy; a sampled request draws from a generator seeded by its own key."""

    prompt: str | Messages
    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """A generated text and how many tokens went in and out."""

    text: str
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class RowLoss:
    """Summed negative log-likelihood in nats over a row's `tokens` trained-on tokens (the completion's, where it has one)."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class Preference:
    """What a preference loss makes of a row: a pair, or an answer with a label.

    Attributes:
        loss: of the row.
        margin: reward of the chosen answer minus that of the rejected one, scaled as the loss has it; of an answer with a
            label its reward, with the other sign where it is a bad one. NaN where nothing is left of an answer.
    """

    loss: float
    margin: float


@dataclass(frozen=True)
class Divergence:
    """How far one answer of the model's own is from what the reference would say.

    Attributes:
        nats: log-probability of the answer under the model minus that under the reference.
        tokens: the answer's, with the one that ends it.
    """

    nats: float
    tokens: int


@runtime_checkable
class LanguageModel(Protocol):
    """What an evaluator may ask of a model. Batches are the model's business; a batch's neighbours never change an answer."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """One generation a request, in order."""
        ...

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): log-probability in nats, and whether greedy decoding gives the continuation."""
        ...

    def token_losses(self, rows: Sequence[Example]) -> list[RowLoss]:
        """Loss of each row as it is trained on; a row without any trained-on token has `tokens` 0."""
        ...


@runtime_checkable
class PreferenceModel(Protocol):
    """A language model that is tuned by preferences."""

    def preferences(self, rows: Sequence[Example]) -> list[Preference]:
        """What the loss makes of each row."""
        ...

    def divergences(self, requests: Sequence[GenerationRequest]) -> list[Divergence]:
        """Answer each request, and compare with the reference."""
        ...

    def reference_answers(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """What the reference answers."""
        ...

    def judge(self) -> Judge | None:
        """The sweep's judge; None without one."""
        ...


@runtime_checkable
class RendersChat(Protocol):
    """A `LanguageModel` that knows its chat format."""

    def chat_prompt(self, messages: Messages, *, opened: bool) -> str:
        """The messages as the text that the model reads; `opened` begins the assistant's turn."""
        ...


def chat_prompt(model: LanguageModel, messages: Messages, *, opened: bool) -> str:
    """The messages as the text that a model reads.

    Raises:
        UserError: if the model shows no chat format.
    """
    if not isinstance(model, RendersChat):
        raise UserError("apply_chat_template: this model shows no chat format; delete the line")
    return model.chat_prompt(messages, opened=opened)


class Evaluator(Protocol):
    """Scores a model on rows. One that keeps samples has them as `samples`, JSON-ready, after `evaluate`.

    Attributes:
        metrics: names this evaluator reports (`exact_match`, `json_fields.valid`) -> direction; the first is its primary.
    """

    metrics: Mapping[str, Direction]

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """One `Score` a metric, with items aligned to `rows`. What can't be scored is NaN, never 0."""
        ...


def summarise(
    name: str,
    split: Split,
    direction: Direction,
    item_set: ItemSet,
    items: Sequence[float] | NDArray[Any],
) -> Score:
    """Weighted mean of the scored items with a standard error clustered by group.

    With weights w, items x and clusters g, the estimate is m = Σwx / Σw and, over G clusters,
    se² = G/(G-1) · Σ_g (Σ_{i in g} w_i (x_i - m))² / (Σw)², the usual cluster-robust error of a ratio
    (Liang & Zeger 1986; Miller 2024, arXiv 2411.00640). With one item a cluster and equal weights this is s/√n.

    Args:
        name: the metric, without its split.
        split: where it was measured.
        direction: which way is better.
        item_set: ids, weights and groups.
        items: (n,) item scores, NaN = unscored.

    Raises:
        ValueError: if the lengths differ.
    """
    import numpy as np

    x = np.asarray(items, dtype=np.float64)
    if x.shape != (len(item_set.ids),):
        raise ValueError(f"items must be one number an item, but got shape {x.shape} for {len(item_set.ids)} items")
    w = np.ones_like(x) if item_set.weights is None else np.asarray(item_set.weights, dtype=np.float64)
    scored = ~np.isnan(x) & (w > 0)
    n, total = int(scored.sum()), float(w[scored].sum())
    value, se = float("nan"), float("nan")
    if n:
        with np.errstate(invalid="ignore"):
            value = float((w[scored] * x[scored]).sum() / total)
            groups = item_set.groups or item_set.ids
            _, index = np.unique(np.asarray(groups, dtype=object)[scored].astype(str), return_inverse=True)
            pulls = np.bincount(index, weights=w[scored] * (x[scored] - value))
        count = len(pulls)
        if count > 1 and math.isfinite(value):
            se = math.sqrt(count / (count - 1) * float((pulls**2).sum())) / total
    return Score(name, split, value, se, n, len(x) - n, direction, item_set, x.astype(np.float32))
