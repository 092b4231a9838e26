"""Evaluators: what a model is scored by. Loaded by name on first use, so that reading a sweep file imports no torch."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evaluators.base import PreferenceModel

if TYPE_CHECKING:
    from evaluators.answers import Judge
    from evaluators.base import (
        Divergence,
        Evaluator,
        Example,
        Generation,
        GenerationRequest,
        LanguageModel,
        Messages,
        Preference,
        RowLoss,
        Score,
        Split,
    )
    from evaluators.config import EvaluatorConfig

EVALUATORS: dict[str, str] = {
    "loss": "evaluators.perplexity:LossEvaluator",
    "perplexity": "evaluators.perplexity:PerplexityEvaluator",
    "kl": "evaluators.preference:KLEvaluator",
    "win_rate": "evaluators.win_rate:WinRateEvaluator",
    "preference": "evaluators.preference:PreferenceEvaluator",
    "exact_match": "evaluators.exact:ExactMatchEvaluator",
    "json_fields": "evaluators.exact:JSONFieldsEvaluator",
    "retrieval": "evaluators.retrieval:RetrievalEvaluator",
    "token_f1": "evaluators.answer_words:TokenF1Evaluator",
    "answer_similarity": "evaluators.rag:AnswerSimilarityEvaluator",
    "faithfulness": "evaluators.rag:FaithfulnessEvaluator",
    "answer_correctness": "evaluators.rag:AnswerCorrectnessEvaluator",
    "answer_relevancy": "evaluators.rag:AnswerRelevancyEvaluator",
    "context_precision": "evaluators.rag:ContextPrecisionEvaluator",
    "context_recall": "evaluators.rag:ContextRecallEvaluator",
    "multiple_choice": "evaluators.multiple_choice:MultipleChoiceEvaluator",
    "lm_eval": "evaluators.benchmarks:LMEvalEvaluator",
}

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


def build_evaluator(config: Mapping[str, Any] | EvaluatorConfig) -> Evaluator:
    """The evaluator that an `evaluate:` entry names.

    Args:
        config: the entry, typed or as JSON (`{"type": "exact_match", "max_new_tokens": 32}`).

    Raises:
        pydantic.ValidationError: if the entry is not valid; the door has checked it before.
    """
    typed = parse_evaluator(config)
    module, _, name = EVALUATORS[typed.model_dump()["type"]].partition(":")
    evaluator: Evaluator = getattr(importlib.import_module(module), name)(typed)
    return evaluator


def parse_evaluator(config: Mapping[str, Any] | EvaluatorConfig) -> EvaluatorConfig:
    """The typed form of an `evaluate:` entry."""
    from pydantic import TypeAdapter

    from evaluators.config import AnyEvaluatorConfig, EvaluatorConfig

    if isinstance(config, EvaluatorConfig):
        return config
    adapter: TypeAdapter[EvaluatorConfig] = TypeAdapter(AnyEvaluatorConfig)
    return adapter.validate_python(dict(config))


def evaluate_all(
    configs: Sequence[Mapping[str, Any] | EvaluatorConfig],
    model: LanguageModel,
    rows: Sequence[Example],
    split: Split,
    samples: Path | None = None,
) -> tuple[Score, ...]:
    """Scores of several evaluators on the same rows; what two of them ask of the model is computed once.

    Entries that differ in nothing but `when` count once. `limit` keeps the first rows by hash order.

    Args:
        configs: `evaluate:` entries, typed or as JSON.
        model: what is scored.
        rows: the split's rows.
        split: which split they are.
        samples: folder for what evaluators with rows of their own keep of each, `<split>-<entry>.jsonl`.

    Raises:
        ValueError: if two different entries report the same metric.
    """
    shared = _SharedPreferences(model) if isinstance(model, PreferenceModel) else _Shared(model)
    scores: dict[str, Score] = {}
    seen: list[EvaluatorConfig] = []
    for config in configs:
        typed = parse_evaluator(config).model_copy(update={"when": None})
        if typed in seen:
            continue
        seen.append(typed)
        evaluator = build_evaluator(typed)
        for score in evaluator.evaluate(shared, first_rows(rows, typed.limit) if typed.rows else rows, split):
            if score.name in scores:
                raise ValueError(f"every metric has one entry under evaluate, but got two that report {score.name!r}")
            scores[score.name] = score
        kept = getattr(evaluator, "samples", None)
        if samples is not None and kept:
            _keep(kept, samples / f"{split}-{typed.slot.replace(' ', '-')[:100]}.jsonl")
    return tuple(scores.values())


def first_rows(rows: Sequence[Example], limit: int | None) -> list[Example]:
    """The first `limit` rows by hash order, in the order they were given: a smaller limit is a subset of a larger one."""
    if limit is None or limit >= len(rows):
        return list(rows)
    ranked = sorted(range(len(rows)), key=lambda i: (hashlib.sha256(rows[i].id.encode()).digest(), i))
    return [rows[i] for i in sorted(ranked[:limit])]


def _keep(samples: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write samples as JSON lines, aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(
        "".join(json.dumps(one, ensure_ascii=False, default=str) + "\n" for one in samples), encoding="utf-8"
    )
    aside.replace(path)


class _Shared:
    """A `LanguageModel` that answers what was asked before from memory, for the length of one `evaluate_all`."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._generations: dict[str, Generation] = {}
        self._losses: dict[str, RowLoss] = {}
        self._likelihoods: dict[str, tuple[float, bool]] = {}

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """See `LanguageModel`."""
        return _once(requests, _request_key, self._model.generate, self._generations)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """See `LanguageModel`."""
        return _once(pairs, json.dumps, self._model.loglikelihood, self._likelihoods)

    def token_losses(self, rows: Sequence[Example]) -> list[RowLoss]:
        """See `LanguageModel`."""
        return _once(rows, _row_key, self._model.token_losses, self._losses)

    def chat_prompt(self, messages: Messages, *, opened: bool) -> str:
        """See `RendersChat`."""
        from evaluators.base import chat_prompt

        return chat_prompt(self._model, messages, opened=opened)


class _SharedPreferences(_Shared):
    """The same of a model that is tuned by preferences: rows that were asked about together are asked about once."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._preferring: PreferenceModel = model
        self._preferences: dict[tuple[str, ...], list[Preference]] = {}

    def preferences(self, rows: Sequence[Example]) -> list[Preference]:
        """See `PreferenceModel`."""
        key = tuple(row.id for row in rows)
        if key not in self._preferences:
            self._preferences[key] = self._preferring.preferences(rows)
        return self._preferences[key]

    def divergences(self, requests: Sequence[GenerationRequest]) -> list[Divergence]:
        """See `PreferenceModel`."""
        return self._preferring.divergences(requests)

    def reference_answers(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """See `PreferenceModel`."""
        return self._preferring.reference_answers(requests)

    def judge(self) -> Judge | None:
        """See `PreferenceModel`."""
        return self._preferring.judge()


def _once(
    asked: Sequence[Asked],
    key: Callable[[Asked], str],
    ask: Callable[[Sequence[Asked]], list[Answer]],
    known: dict[str, Answer],
) -> list[Answer]:
    """Answers in order, asking in one batch for what is not known yet."""
    keys = [key(one) for one in asked]
    missing = {k: one for k, one in zip(keys, asked, strict=True) if k not in known}
    if missing:
        known.update(zip(missing, ask(list(missing.values())), strict=True))
    return [known[k] for k in keys]


def _request_key(request: GenerationRequest) -> str:
    return json.dumps({**request.__dict__, "prompt": _plain(request.prompt)}, sort_keys=True)


def _row_key(row: Example) -> str:
    return json.dumps([_plain(row.prompt), row.completion], sort_keys=True)


def _plain(prompt: str | Sequence[Mapping[str, str]] | None) -> Any:
    return prompt if prompt is None or isinstance(prompt, str) else [dict(message) for message in prompt]
