"""Public benchmarks through lm-evaluation-harness, with item scores and errors as every evaluator's.

Each task is one score, and several are one weighted mean: with weights w and tasks k it is m = Σ w_k m_k / Σ w_k and, as
tasks are strata, se² = Σ w_k² se_k² / (Σ w_k)². Of a group its tasks are the strata. A metric that is a mean over
documents has them as items; a perplexity has each document's loss, and its error by the delta method; any other (F1,
Matthews correlation, BLEU) has the pseudo-values of a jackknife over at most `BLOCKS` blocks of documents (Tukey 1958;
Efron & Tibshirani 1993, ch. 11), whose mean is the metric.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.base import Direction, Example, ItemSet, LanguageModel, Score, Split, UserError, summarise
from evaluators.benchmark_config import BenchmarkTask, LMEvalConfig

if TYPE_CHECKING:
    from evaluators.harness import Judged

BLOCKS = 200
"""Blocks that a jackknife leaves out one by one."""


class LMEvalEvaluator:
    """Tasks, groups and tags of lm-evaluation-harness; a task without documents for a split has no score there.

    Example:
        >>> LMEvalEvaluator(LMEvalConfig(tasks=[{"name": "gsm8k"}], limit=30)).evaluate(model, [], "test")[0].key
        'test/lm_eval.gsm8k'
    """

    def __init__(self, config: LMEvalConfig) -> None:
        self.config = config
        self.metrics: Mapping[str, Direction] = config.reports()
        self.samples: list[dict[str, Any]] = []

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """One score a task, after that of all where `metrics` has it; `rows` are not looked at.

        Raises:
            UserError: if lm-evaluation-harness is not installed, or a task can't be had or has no such metric.
        """
        self.samples = []
        scores, weights = [], []
        for task in self.config.tasks:
            score = self._task(task, model, split)
            if score is not None:
                scores.append(score)
                weights.append(task.weight)
        if "lm_eval" in self.metrics and scores:
            return (together("lm_eval", scores, weights), *scores)
        return tuple(scores)

    def _task(self, task: BenchmarkTask, model: LanguageModel, split: Split) -> Score | None:
        harness, config = installed(), self.config
        shots = config.num_fewshot if task.num_fewshot is None else task.num_fewshot
        with harness.seeded():
            loaded = harness.load(task.name, config.include_path, shots, split)
            if loaded is None:
                return None
            asked = harness.AskedModel(model, config.max_new_tokens)
            judged = harness.judge(
                asked, loaded.tasks, split, metric=task.metric, limit=config.limit, chat=config.apply_chat_template
            )
        name = f"lm_eval.{task.name}"
        for one in judged:
            self.samples += [{"task": one.task, **sample} for sample in one.samples]
            if one.larger_is_better != (task.direction == "maximize"):
                less = "less" if task.direction == "maximize" else "more"
                raise UserError(
                    f"lm_eval: of {one.task}'s {one.metric} {less} is better; name a metric: {{name: {task.name}, metric: ...}}"
                )
        parts = [scored(name, split, task.direction, one) for one in judged]
        if len(parts) == 1:
            return parts[0]
        return together(name, parts, [float(part.n) if loaded.by_size else 1.0 for part in parts])


def installed() -> Any:
    """The module that speaks to lm-evaluation-harness.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module("evaluators.harness")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise UserError(
            "lm_eval needs the package lm-eval, which is not installed: pip install 'stockpot[lm-eval]'"
        ) from None


def scored(name: str, split: Split, direction: Direction, judged: Judged) -> Score:
    """One task's score with its items."""
    documents = tuple(f"{judged.task}/{one}" for one in judged.documents)
    numbers = [float("nan") if value is None else value for value in judged.values]
    if all(isinstance(value, int | float) for value in numbers):
        plain = summarise(name, split, direction, ItemSet(documents), [float(value) for value in numbers])
        if math.isclose(plain.value, judged.total, rel_tol=1e-9, abs_tol=1e-12):
            return plain
    elif judged.metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        return _perplexity(name, split, direction, documents, judged)
    return _jackknife(name, split, direction, documents, judged)


def _perplexity(name: str, split: Split, direction: Direction, documents: tuple[str, ...], judged: Judged) -> Score:
    """The exponential of the mean loss a word or byte, or its bits; the items are losses, as of `perplexity`."""
    sums, counts = np.array(list(judged.values), dtype=np.float64).T
    items = ItemSet(documents, weights=tuple(counts.tolist()))
    loss = summarise(name, split, direction, items, -sums / counts)
    if judged.metric == "bits_per_byte":
        return summarise(name, split, direction, items, -sums / counts / math.log(2))
    return replace(loss, value=judged.total, se=judged.total * loss.se)


def _jackknife(name: str, split: Split, direction: Direction, documents: tuple[str, ...], judged: Judged) -> Score:
    """A metric of all documents together: blocks of documents are left out one by one."""
    values, n = list(judged.values), len(judged.values)
    count = min(n, BLOCKS)
    ranked = sorted(range(n), key=lambda place: (documents[place], place))
    block = np.empty(n, dtype=int)
    block[ranked] = np.arange(n) * count // n
    left = np.full(count, judged.total)
    if count > 1:
        left = np.array(
            [judged.aggregate([values[place] for place in range(n) if block[place] != one]) for one in range(count)]
        )
    pseudo = count * judged.total - (count - 1) * left
    pseudo += judged.total - np.average(pseudo, weights=np.bincount(block))
    items = ItemSet(documents, groups=tuple(f"block {one}" for one in block))
    return summarise(name, split, direction, items, pseudo[block])


def together(name: str, parts: Sequence[Score], weights: Sequence[float]) -> Score:
    """The weighted mean of scores of disjoint items, its error from theirs; every item of theirs is an item of it."""
    total = sum(weights)
    value = sum(weight * part.value for weight, part in zip(weights, parts, strict=True)) / total
    se = math.sqrt(sum((weight * part.se) ** 2 for weight, part in zip(weights, parts, strict=True))) / total
    ids: list[str] = []
    groups: list[str] = []
    shares: list[float] = []
    items: list[float] = []
    for weight, part in zip(weights, parts, strict=True):
        assert part.item_set is not None, "every benchmark has items"
        assert part.items is not None, "every benchmark has items"
        own = part.item_set.weights or (1.0,) * len(part.item_set.ids)
        counted = sum(w for w, x in zip(own, part.items, strict=True) if not math.isnan(x))
        ids += part.item_set.ids
        groups += [f"{part.name} {group}" for group in part.item_set.groups or part.item_set.ids]
        shares += [w * weight / counted if counted else 0.0 for w in own]
        items += part.items.tolist()
    joined = ItemSet(tuple(ids), tuple(shares), tuple(groups))
    first = parts[0]
    return Score(
        name, first.split, value, se, sum(part.n for part in parts), sum(part.unscored for part in parts),
        first.direction, joined, np.asarray(items, dtype=np.float32),
    )  # fmt: skip
