"""Evaluators: what a model is scored by. Loaded by name on first use, so that reading a sweep file imports no torch."""

from __future__ import annotations

EVALUATORS: dict[str, str] = {
    "loss": "evaluators.perplexity:LossEvaluator",
    "perplexity": "evaluators.perplexity:PerplexityEvaluator",
    "exact_match": "evaluators.exact:ExactMatchEvaluator",
    "json_fields": "evaluators.exact:JSONFieldsEvaluator",
}
