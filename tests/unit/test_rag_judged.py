"""The claim metrics with a deterministic judge, against values worked out by hand."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators import build_evaluator
from evaluators.answers import Answered, AnswerEvaluator, Passage, Question, Tools
from evaluators.config import EVALUATOR_CONFIGS, METRICS, name_of
from evaluators.judge import VERSION, the_object
from evaluators.rag import average_precision, statement_f1
from tests.unit.rag_judging import TableJudge, letters, verdicts

JUDGED = [
    name_of(config)
    for config in EVALUATOR_CONFIGS
    if (config.judged or config.embeds) and "preference" not in config.subjects
]


def one(answer, reference="abc", context=(), question="Which?", name="q"):
    passages = tuple(Passage("d", 0, len(text), text) for text in context)
    return Answered(Question(name, name, question, answer=reference), passages, passages, answer)


def scores(metric, rows, judge=None, **settings):
    tools = Tools(judge or TableJudge(), letters)
    return build_evaluator({"type": metric, **settings}).evaluate_answers(rows, "tune", tools)


def item(metric, row, judge=None, **settings):
    return float(scores(metric, [row], judge, **settings)[0].items[0])


class TestContract:
    """What holds for all six."""

    @pytest.fixture(params=JUDGED)
    def name(self, request):
        return request.param

    def test_reports_its_metrics_in_order_aligned_to_the_questions(self, name):
        evaluator = build_evaluator({"type": name})
        assert isinstance(evaluator, AnswerEvaluator)
        rows = [one("a. b", context=["a b abc"]), one("b", name="r", context=["b"])]
        found = evaluator.evaluate_answers(rows, "test", Tools(TableJudge(), letters))
        assert [score.name for score in found] == list(evaluator.metrics)
        for score in found:
            assert (score.split, score.direction) == ("test", METRICS[score.name])
            assert score.item_set.ids == ("q", "r")
            assert score.n == 2
            assert 0 <= score.value <= 1 + 1e-6

    def test_no_questions_ask_nothing(self, name):
        judge = TableJudge()
        for score in scores(name, [], judge):
            assert math.isnan(score.value)
        assert judge.batches == []

    def test_an_empty_answer_scores_one_nowhere(self, name):
        for answer in ("", " \n"):
            for score in scores(name, [one(answer, context=["abc"])]):
                if "answer" in build_evaluator({"type": name}).config.subjects:
                    assert score.items[0] == 0 or (name == "faithfulness" and math.isnan(score.items[0]))

    def test_a_judge_that_says_nothing_of_use_leaves_all_unscored(self, name):
        if name == "answer_similarity":
            return
        for text in (None, "", "I think so.", "{}", '{"statements": "one"}', '{"verdict": "1"}', "{" * 2000):
            judge = TableJudge(**{task: lambda _, text=text: text for task in ("statements", "useful", "questions")})
            for score in scores(name, [one("a", context=["a"])], judge):
                assert math.isnan(score.value)
                assert (score.n, score.unscored) == (0, 1)

    def test_each_step_asks_for_all_questions_at_once(self, name):
        judge = TableJudge()
        scores(name, [one(f"a{i}", f"b{i}", [f"c{i}"], name=str(i)) for i in range(5)], judge)
        tasks = [set(batch) for batch in judge.batches]
        assert all(len(batch) == 1 for batch in tasks)
        assert len({task for batch in tasks for task in batch}) == len(tasks) <= 2
        assert all(task.endswith(f"/{VERSION}") for batch in tasks for task in batch)

    def test_one_question_unreadable_leaves_the_others_scored(self, name):
        if name == "answer_similarity":
            return

        def broken(task):
            return lambda content: (
                "no" if "bad" in json.dumps(content) else json.dumps(getattr(TableJudge(), f"_{task}")(content))
            )

        judge = TableJudge(**{task: broken(task) for task in ("statements", "useful", "questions")})
        rows = [
            one("ok", "ok", ["ok"], name="1"),
            one("bad", "bad", ["bad"], name="2"),
            one("ok", "ok", ["ok"], name="3"),
        ]
        assert [math.isnan(x) for x in scores(name, rows, judge)[0].items] == [False, True, False]


def test_faithfulness_is_the_share_of_supported_statements():
    assert item("faithfulness", one("a. b. c", context=["a and", "c"])) == pytest.approx(2 / 3)
    assert item("faithfulness", one("a. b", context=[])) == 0
    assert math.isnan(item("faithfulness", one(None, context=["a"])))
    assert math.isnan(item("faithfulness", one("...", context=["a"])))
    assert item("faithfulness", one("a", None, ["a"])) == 1


def test_context_recall_is_the_share_of_the_references_statements():
    assert item("context_recall", one("x", "a. b. c. d", ["a", "b", "c"])) == 0.75
    assert item("context_recall", one(None, "a", ["a"])) == 1
    assert item("context_recall", one("a", "a", [])) == 0
    assert math.isnan(item("context_recall", one("a", None, ["a"])))
    assert math.isnan(item("context_recall", one("a", " ", ["a"])))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([1, 0, 1], (1 + 2 / 3) / 2),
        ([0, 0, 1], 1 / 3),
        ([0, 0], 0),
        ([], 0),
        ([1, 1], 1),
        ([1, None], None),
        (None, None),
    ],
)
def test_context_precision_is_average_precision(found, expected):
    value = average_precision(None if found is None else [None if v is None else bool(v) for v in found])
    assert math.isnan(value) if expected is None else value == pytest.approx(expected)


def test_context_precision_asks_about_each_passage_with_the_reference():
    judge = TableJudge()
    assert item("context_precision", one("x", "a", ["a1", "b", "a2"]), judge) == pytest.approx((1 + 2 / 3) / 2)
    assert judge.batches == [[f"useful/{VERSION}"] * 3]
    assert item("context_precision", one(None, "a", [])) == 0
    assert math.isnan(item("context_precision", one("a", None, ["a"])))
    torn = TableJudge(useful=lambda content: "?" if content["passage"] == "b" else '{"verdict": 1}')
    assert math.isnan(item("context_precision", one("x", "a", ["a", "b"]), torn))


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [((1, 0), (1, 0, 0), 2 / 5), ((1, 1), (1, 1), 1), ((0,), (0,), 0), ((), (0, 0), 0), ((0,), (), 0), ((), (), None)],
)
def test_f1_is_of_true_and_false_positives_and_false_negatives(answer, reference, expected):
    value = statement_f1(tuple(map(bool, answer)), tuple(map(bool, reference)))
    assert math.isnan(value) if expected is None else value == pytest.approx(expected)


def test_answer_correctness_mixes_f1_and_similarity():
    row = one("a. b", "a. c. d")
    mixed, f1 = scores("answer_correctness", [row])
    cosine = 1 / (math.sqrt(2) * math.sqrt(3))
    assert f1.items[0] == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert mixed.items[0] == pytest.approx(0.75 * 0.4 + 0.25 * cosine)
    assert item("answer_correctness", row, weight=1) == pytest.approx(0.4)
    assert item("answer_correctness", row, weight=0) == pytest.approx(cosine)


def test_answer_correctness_without_statements():
    assert [score.items[0] for score in scores("answer_correctness", [one("", "a")])] == [0, 0]
    assert math.isnan(item("answer_correctness", one("..", "...")))
    assert scores("answer_correctness", [one("..a", "...")])[1].items[0] == 0
    for answer, reference in ((None, "a"), ("a", None), ("a", "")):
        judge = TableJudge()
        assert math.isnan(item("answer_correctness", one(answer, reference), judge))
        assert judge.batches == []


def test_answer_relevancy_is_the_mean_cosine_of_questions_made_from_the_answer():
    def said(*noncommittal):
        made = [{"question": text, "noncommittal": n} for text, n in zip(("ab", "c", "b"), noncommittal, strict=True)]
        return TableJudge(questions=lambda content: json.dumps({"questions": made}))

    row = one("any", question="ab")
    near = (1 + 0 + 1 / math.sqrt(2)) / 3
    assert item("answer_relevancy", row, said(0, 0, 0)) == pytest.approx(near)
    assert item("answer_relevancy", row, said(1, 1, 0)) == pytest.approx(near)
    assert item("answer_relevancy", row, said(1, 1, 1)) == 0
    assert math.isnan(item("answer_relevancy", row, said(0, 0, 0), questions=2))
    assert math.isnan(item("answer_relevancy", one(None)))
    judge = TableJudge()
    assert item("answer_relevancy", one("", question="ab"), judge) == 0
    assert judge.batches == []
    two = [one("x", question="ab", name="1"), one("", question="ab", name="2"), one("y", question="ab", name="3")]
    asked = TableJudge(
        questions=lambda content: json.dumps(
            {"questions": [{"question": "ab" if content["answer"] == "y" else "c", "noncommittal": 0}]}
        )
    )
    assert list(scores("answer_relevancy", two, asked, questions=1)[0].items) == pytest.approx([0, 0, 1])


def test_answer_similarity_is_a_cosine():
    assert item("answer_similarity", one("ab", "b")) == pytest.approx(1 / math.sqrt(2))
    assert item("answer_similarity", one("b", "a")) == 0
    assert math.isnan(item("answer_similarity", one("123", "a")))
    assert math.isnan(item("answer_similarity", one(None, "a")))


def test_a_repeated_question_makes_equal_prompts_whatever_else_differs():
    """What the memo shares: statements by question and text, passages' verdicts by question, reference and passage."""
    first, second = TableJudge(), TableJudge()
    scores("context_precision", [one("x", "a", ["p", "q"])], first)
    scores("context_precision", [one("another answer", "a", ["q"])], second)
    assert set(second.prompts) < set(first.prompts)
    recall, correctness = TableJudge(), TableJudge()
    scores("context_recall", [one("x", "a. b", ["p"])], recall)
    scores("answer_correctness", [one("y", "a. b", ["q"])], correctness)
    assert recall.prompts[0] in correctness.prompts
    faithful = TableJudge()
    scores("faithfulness", [one("y", "another", ["r"])], faithful)
    assert faithful.prompts[0] in correctness.prompts


@pytest.mark.parametrize(
    "said",
    [
        verdicts([1]),
        verdicts([1, 0, 1]),
        [{"number": 1, "verdict": 1}, {"number": 1, "verdict": 1}],
        [{"number": 1, "verdict": 1}, {"number": 2}],
        [{"number": 1, "verdict": 1}, {"number": 2, "verdict": 2}],
        [{"number": 1, "verdict": 1}, {"number": 2, "verdict": "1"}],
        [{"number": "1", "verdict": 1}, {"number": 2, "verdict": 1}],
        [1, 0],
        {"1": 1, "2": 0},
    ],
)
def test_verdicts_that_do_not_cover_the_statements_are_unscored(said):
    judge = TableJudge(supported=lambda content: json.dumps({"verdicts": said}))
    assert math.isnan(item("faithfulness", one("a. b", context=["a"]), judge))


def test_verdicts_go_by_their_numbers():
    row = one("a. b", "a. b. c")
    sides = {"answer": verdicts([1, 0])[::-1], "reference": verdicts([0, 1, 1])[::-1]}
    judge = TableJudge(matched=lambda content: json.dumps(sides))
    assert scores("answer_correctness", [row], judge)[1].items[0] == pytest.approx(2 / (2 + 1 + 1))
    short = TableJudge(matched=lambda content: json.dumps({**sides, "reference": verdicts([1])}))
    assert math.isnan(item("answer_correctness", row, short))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"verdict": 1}', 1),
        ('Sure! ```json\n{"reason": "{}", "verdict": 0}\n``` Bye {now}', 0),
        ('{"x": {"verdict": 1}}', None),
        ('{"verdict": 1} {"verdict": 1}', 1),
        ('{"verdict": 1} or {"verdict": 0}', None),
        ('{"note": 1} {"verdict": 1}', 1),
        ('{"verdict": NaN}', None),
        ('{"verdict": 1', None),
        ('{"a": ' * 5000, None),
    ],
)
def test_one_object_is_found_in_whatever_stands_around_it(text, value):
    found = the_object(text, "verdict")
    assert (None if found is None else found["verdict"]) == value


@given(st.text(alphabet='{}[]":,01ab\\ \n', max_size=60))
def test_no_answer_breaks_the_reader(text):
    found = the_object(text, "a")
    assert found is None or "a" in found
