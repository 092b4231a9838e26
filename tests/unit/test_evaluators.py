import json
import math
import re
from collections.abc import Sequence
from string import ascii_letters

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators import EVALUATORS, build_evaluator, evaluate_all, first_rows
from evaluators.base import Example, Generation, GenerationRequest, LanguageModel, RowLoss, summarise
from evaluators.config import EVALUATOR_CONFIGS, METRICS, EvaluatorConfig, ExactMatchConfig
from evaluators.exact import ExactMatchEvaluator, judge_json, normalized


class EchoModel:
    """A language model that answers from a dictionary and counts what it is asked."""

    def __init__(self, answers: dict[str, str] | None = None, losses: dict[str, RowLoss] | None = None) -> None:
        self.answers = answers or {}
        self.losses = losses or {}
        self.requests: list[GenerationRequest] = []
        self.batches = 0
        self.rows: list[Example] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.requests += requests
        self.batches += 1
        return [Generation(self.answers[str(r.prompt)], 1, 1) for r in requests]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        raise AssertionError("not asked by these evaluators")

    def token_losses(self, rows: Sequence[Example]) -> list[RowLoss]:
        self.rows += rows
        return [self.losses[row.id] for row in rows]


def row(name: str, completion: str = "x", group: str | None = None, prompt: object = "") -> Example:
    return Example(id=name, group=group or name, prompt=name if prompt == "" else prompt, completion=completion)  # type: ignore[arg-type]


ROWS = [row("a", '{"k": 1}'), row("b", '{"k": 2}', group="a"), row("c", '{"k": 3}')]


def model() -> EchoModel:
    return EchoModel(
        answers={"a": '{"k": 1}', "b": "no", "c": '{"k": 3}', "d": "d", "e": "e"},
        losses={
            "a": RowLoss(2.0, 4),
            "b": RowLoss(9.0, 3),
            "c": RowLoss(1.0, 1),
            "d": RowLoss(0.0, 0),
            "e": RowLoss(5.0, 5),
        },
    )


MODEL_EVALUATORS = sorted(
    config.model_fields["type"].default
    for config in EVALUATOR_CONFIGS
    if "model" in config.subjects and not config.example
)


@pytest.fixture(params=MODEL_EVALUATORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestContract:
    """What holds for every evaluator of the table."""

    def test_reports_its_metrics_on_the_rows_in_order(self, name: str) -> None:
        evaluator = build_evaluator({"type": name})
        scores = evaluator.evaluate(model(), ROWS, "select")
        assert [s.name for s in scores] == list(evaluator.metrics)
        assert scores[0].name == name
        for score in scores:
            assert score.split == "select"
            assert score.direction == evaluator.metrics[score.name] == METRICS[score.name]
            assert score.item_set is not None
            assert score.item_set.ids == ("a", "b", "c")
            assert score.item_set.groups == ("a", "a", "c")
            assert score.items is not None
            assert score.items.dtype == np.float32
            assert score.n + score.unscored == len(score.items) == 3
            assert math.isfinite(score.value)
            assert score.se > 0 or len(set(score.items)) == 1

    def test_an_empty_list_of_rows_is_unscored_not_zero(self, name: str) -> None:
        for score in build_evaluator({"type": name}).evaluate(model(), [], "tune"):
            assert math.isnan(score.value)
            assert (score.n, score.unscored) == (0, 0)

    def test_limit_keeps_a_stable_subset(self, name: str) -> None:
        (score, *_) = build_evaluator({"type": name, "limit": 2}).evaluate(model(), ROWS, "tune")
        assert score.item_set is not None
        assert score.item_set.ids == tuple(r.id for r in first_rows(ROWS, 2))

    def test_typed_and_json_entries_build_the_same(self, name: str) -> None:
        typed = build_evaluator({"type": name, "when": "final"}).config  # type: ignore[attr-defined]
        assert isinstance(typed, EvaluatorConfig)
        assert build_evaluator(typed).config == typed  # type: ignore[attr-defined]


def test_table_matches_the_configs() -> None:
    kinds = {
        config.model_fields["type"].default: config.metrics
        for config in EvaluatorConfig.__subclasses__()
        if config.__module__.startswith("evaluators.")
    }
    assert set(kinds) == set(EVALUATORS)
    plain = {config.model_fields["type"].default for config in EVALUATOR_CONFIGS if not config.example}
    for kind, metrics in kinds.items():
        if kind in plain:
            assert build_evaluator({"type": kind}).metrics == metrics


def test_loss_is_the_token_mean_clustered_by_group() -> None:
    (score,) = build_evaluator({"type": "loss"}).evaluate(model(), [*ROWS, row("d")], "tune")
    assert score.value == pytest.approx(12 / 8)
    assert (score.n, score.unscored) == (3, 1)
    # clusters: {a, b} with 11 nats of 7 tokens, {c} with 1 of 1; pulls are 11 - 7 m and 1 - m
    pulls = [11 - 7 * 1.5, 1 - 1.5]
    assert score.se == pytest.approx(math.sqrt(2 * sum(p * p for p in pulls)) / 8)
    assert score.items is not None
    assert math.isnan(score.items[3])


def test_perplexity_is_exp_of_the_loss_with_its_delta_error() -> None:
    loss, perplexity = evaluate_all([{"type": "loss"}, {"type": "perplexity"}], model(), ROWS, "tune")
    assert perplexity.value == pytest.approx(math.exp(loss.value))
    assert perplexity.se == pytest.approx(math.exp(loss.value) * loss.se)
    assert loss.items is not None
    assert perplexity.items is not None
    np.testing.assert_array_equal(perplexity.items, loss.items)
    assert perplexity.item_set == loss.item_set


@pytest.mark.parametrize(("nats", "value"), [(1e5, math.inf), (math.inf, math.inf)])
def test_an_enormous_loss_is_infinite_perplexity_without_an_error(nats: float, value: float) -> None:
    asked = EchoModel(losses={"a": RowLoss(nats, 1), "b": RowLoss(1.0, 1)})
    (score,) = build_evaluator({"type": "perplexity"}).evaluate(asked, ROWS[:2], "tune")
    assert score.value == value
    assert math.isnan(score.se)
    assert json.loads(json.dumps(score.record(), allow_nan=False))["value"] == "inf"


@pytest.mark.parametrize(
    ("settings", "answer", "reference", "item"),
    [
        ({}, " Paris\n", "Paris", 1),
        ({}, "paris", "Paris", 0),
        ({"normalize": True}, "The  paris!", "Paris", 1),
        ({"normalize": True}, "parish", "Paris", 0),
        ({"normalize": True}, "-", "+", 0),
        ({"normalize": True}, "+", "+", 1),
        ({"normalize": True}, "", "the", 0),
        ({"answer_regex": "#### (.*)"}, "so #### 3\nno #### 4", "because\n#### 4", 1),
        ({"answer_regex": "#### (.*)"}, "4", "#### 4", 0),
        ({"answer_regex": r"\d+"}, "2 and 4", "it is 4", 1),
        ({"answer_regex": "#### (.*)"}, "#### 4", "four", math.nan),
        ({"answer_regex": "x|(y)"}, "y", "x", math.nan),
        ({"answer_regex": "#### (.*)", "normalize": True}, "#### The Dog.", "#### dog", 1),
    ],
)
def test_exact_match_judges(settings: dict[str, object], answer: str, reference: str, item: float) -> None:
    judged = ExactMatchEvaluator(ExactMatchConfig.model_validate(settings)).judge(answer, reference)
    assert judged == item or (math.isnan(judged) and math.isnan(item))


def test_exact_match_leaves_rows_without_a_prompt_unscored_and_asks_nothing_for_them() -> None:
    asked = EchoModel({"a": "x"})
    (score,) = build_evaluator({"type": "exact_match"}).evaluate(asked, [row("t", prompt=None), row("a")], "tune")
    assert (score.value, score.n, score.unscored) == (1.0, 1, 1)
    assert [r.prompt for r in asked.requests] == ["a"]


def test_prompts_are_handed_over_untouched() -> None:
    chat = ({"role": "user", "content": " hi\n"},)
    asked = EchoModel({str(chat): "x", "  q ": "x"})
    build_evaluator({"type": "exact_match", "max_new_tokens": 7}).evaluate(
        asked, [row("1", prompt=chat), row("2", prompt="  q ")], "tune"
    )
    assert [r.prompt for r in asked.requests] == [chat, "  q "]
    assert {(r.max_new_tokens, r.temperature) for r in asked.requests} == {(7, 0.0)}


def test_a_bad_regular_expression_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        build_evaluator({"type": "exact_match", "answer_regex": "(("})


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    ("answer", "reference", "items"),
    [
        ('{"a": 1, "b": "x"}', '{"b": "x", "a": 1}', (1, 1, 1)),
        ('{"a": 1.0, "b": "x"}', '{"a": 1, "b": "x"}', (1, 1, 1)),
        ('{"a": true}', '{"a": 1}', (0, 0, 1)),
        ('{"a": [true, {"c": 0}]}', '{"a": [1, {"c": 0}]}', (0, 0, 1)),
        ('{"a": 1}', '{"a": 1, "b": 2}', (0.5, 0, 1)),
        ('{"a": 1, "b": 3}', '{"a": 1, "b": 2}', (0.5, 0, 1)),
        ('{"a": 1, "z": 3}', '{"a": 1}', (1, 0, 1)),
        ('{"a": null}', '{"a": null, "b": null}', (0.5, 0, 1)),
        ('{"a": [2, 1]}', '{"a": [1, 2]}', (0, 0, 1)),
        ("[1]", '{"a": 1}', (0, 0, 0)),
        ('{"a": 1} thanks', '{"a": 1}', (0, 0, 0)),
        ('{"a": NaN}', '{"a": 1}', (0, 0, 0)),
        ("", '{"a": 1}', (0, 0, 0)),
        (NESTED, '{"a": 1}', (0, 0, 0)),
        ('{"a": 1}', "not json", (math.nan,) * 3),
        ('{"a": 1}', "{}", (math.nan,) * 3),
        ('{"a": 1}', "[1]", (math.nan,) * 3),
    ],
)
def test_json_fields_judges(answer: str, reference: str, items: tuple[float, float, float]) -> None:
    np.testing.assert_array_equal(judge_json(answer, reference), items)


LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


@given(st.dictionaries(st.text(max_size=3), LEAF | st.lists(LEAF, max_size=2), min_size=1, max_size=3))
def test_any_object_equals_itself_whatever_its_order(value: dict[str, object]) -> None:
    shuffled = dict(reversed(value.items()))
    assert judge_json(json.dumps(shuffled, indent=1), json.dumps(value)) == (1.0, 1.0, 1.0)


@given(st.text(), st.text(alphabet=ascii_letters + '{}[]",: 0123456789.-\\'))
def test_no_answer_breaks_the_judge(answer: str, jsonish: str) -> None:
    for text in (answer, jsonish):
        share, exact, valid = judge_json(text, '{"a": 1}')
        assert 0 <= exact <= share <= valid <= 1


@given(st.text())
def test_normalizing_is_idempotent_up_to_articles(text: str) -> None:
    once = normalized(text)
    assert once == once.strip()
    assert not re.search(r"\b(a|an|the)\b", once)


def test_evaluate_all_asks_the_model_once() -> None:
    asked = model()
    scores = evaluate_all(
        [
            {"type": "exact_match"},
            {"type": "json_fields", "when": "final"},
            {"type": "exact_match", "when": "rung"},
            {"type": "loss"},
            {"type": "perplexity"},
        ],
        asked,
        ROWS,
        "tune",
    )
    assert [s.key for s in scores] == [
        "tune/exact_match",
        "tune/json_fields",
        "tune/json_fields.exact",
        "tune/json_fields.valid",
        "tune/loss",
        "tune/perplexity",
    ]
    assert asked.batches == 1
    assert [r.prompt for r in asked.requests] == ["a", "b", "c"]
    assert [r.id for r in asked.rows] == ["a", "b", "c"]
    assert [s.value for s in scores[:4]] == pytest.approx([2 / 3] * 4)


def test_evaluate_all_asks_again_where_the_request_differs() -> None:
    asked = model()
    evaluate_all([{"type": "exact_match"}, {"type": "json_fields", "max_new_tokens": 8}], asked, ROWS, "tune")
    assert len(asked.requests) == 6


def test_evaluate_all_asks_equal_prompts_once() -> None:
    asked = EchoModel({"q": "x"})
    (score,) = evaluate_all([{"type": "exact_match"}], asked, [row("1", prompt="q"), row("2", prompt="q")], "tune")
    assert (score.n, len(asked.requests)) == (2, 1)


def test_evaluate_all_refuses_two_entries_for_one_metric() -> None:
    with pytest.raises(ValueError, match="exact_match"):
        evaluate_all([{"type": "exact_match"}, {"type": "exact_match", "normalize": True}], model(), ROWS, "tune")


def test_first_rows_nest() -> None:
    rows = [row(str(i)) for i in range(50)]
    small, large = first_rows(rows, 10), first_rows(rows, 20)
    assert len(small) == 10
    assert {r.id for r in small} < {r.id for r in large}
    assert [r.id for r in large] == sorted((r.id for r in large), key=int)
    assert small != rows[:10]
    assert {r.id for r in first_rows(rows[::-1], 10)} == {r.id for r in small}


def test_the_fake_is_a_language_model() -> None:
    assert isinstance(model(), LanguageModel)


def test_one_item_a_cluster_gives_the_textbook_error() -> None:
    x = np.random.default_rng(0).normal(size=40)
    from evaluators.base import ItemSet

    score = summarise("m", "tune", "maximize", ItemSet(tuple(map(str, range(40)))), x)
    assert score.se == pytest.approx(x.std(ddof=1) / math.sqrt(40))
