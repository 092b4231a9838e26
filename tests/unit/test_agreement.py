"""Correlations with people, against scipy and against what is known of their intervals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evaluators.agreement import agreement, pearson, spearman
from pipelines.stage import UserError
from sweeps.cli import main
from sweeps.human_labels import read_labels

NUMBERS = st.lists(st.tuples(st.integers(-5, 5), st.integers(-2, 2)), min_size=3, max_size=40)


@given(NUMBERS)
def test_correlations_are_scipys(rows):
    x, y = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(pearson(x, y))
        assert math.isnan(spearman(x, y))
        return
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-9)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)


def test_the_interval_is_about_fishers_where_rows_are_independent_and_wider_in_clusters():
    generator = np.random.default_rng(3)
    x = generator.standard_normal(200)
    y = 0.6 * x + 0.8 * generator.standard_normal(200)
    found = agreement(x, y, [str(i) for i in range(200)])
    z, half = math.atanh(found.pearson), 1.96 / math.sqrt(197)
    assert found.pearson_interval == pytest.approx((math.tanh(z - half), math.tanh(z + half)), abs=0.03)
    twice = agreement(np.repeat(x, 2), np.repeat(y, 2), [str(i) for i in range(200) for _ in "ab"])
    apart = agreement(np.repeat(x, 2), np.repeat(y, 2), [str(i) for i in range(400)])
    assert (twice.n, twice.clusters, twice.pearson) == (400, 200, pytest.approx(found.pearson))
    assert twice.pearson_interval == pytest.approx(found.pearson_interval)
    assert np.ptp(apart.pearson_interval) < 0.8 * np.ptp(twice.pearson_interval)
    low, high = found.spearman_interval
    assert low < found.spearman < high


def test_unscored_rows_are_left_out_and_nothing_is_no_number():
    found = agreement([1, 2, math.nan, 4], [1, 2, 0, 4], "abcd")
    assert (found.n, found.clusters, found.spearman) == (3, 3, 1)
    nothing = agreement([math.nan], [1], "a")
    assert (nothing.n, nothing.clusters) == (0, 0)
    assert math.isnan(nothing.spearman)
    assert math.isnan(nothing.spearman_interval[0])


def pair(query, first, second, label, reference="alpha beta"):
    labels = {f"{name}_label": label for name in ("overall", "correctness", "completeness")}
    return {
        "query": query,
        "gt_answer": reference,
        "model1": {"response": first},
        "model2": {"response": second},
        **labels,
    }


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_are_judged_by_the_difference_and_annotators_against_each_other(tmp_path):
    rows = [
        pair("q", "alpha", "alpha beta", 1),
        pair("q", "alpha", "alpha beta", 2),
        pair("r", "beta alpha", "none", -2),
    ]
    labels = read_labels(write(tmp_path / "a.jsonl", rows))
    assert [one.answer for one in labels.answered] == ["alpha", "alpha beta", "beta alpha", "none"]
    assert labels.values([0.5, 1.0, 1.0, 0.0]) == [0.5, 0.5, -1.0]
    assert labels.among_themselves("overall") == ([1.0, 2.0], [2.0, 1.0], ["q", "q"])
    assert len(read_labels(tmp_path / "a.jsonl", limit=1).judgements) == 1


def test_answers_bring_their_contexts_and_people_are_compared_on_one_of_them(tmp_path):
    row = {"question": "q", "answer": "a", "contexts": ["one", "two"], "label": 1}
    rows = [row, {**row, "label": 0.5}, {**row, "contexts": [], "reference": "r", "label": 0}]
    labels = read_labels(write(tmp_path / "a.jsonl", rows))
    first, second = labels.answered
    assert ([passage.text for passage in first.context], first.question.answer) == (["one", "two"], None)
    assert (second.context, second.question.answer) == ((), "r")
    assert labels.values([0.25, 0.75]) == [0.25, 0.25, 0.75]
    assert labels.among_themselves("label") == ([1.0, 0.5], [0.5, 1.0], ["q", "q"])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "is empty"),
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ('{"question": "a"}', "of no shape known here"),
        (json.dumps(pair("q", "a", "b", 3)), "no label from -2 to 2"),
        ('{"question": "q", "answer": "a", "contexts": "c", "label": 1}', "is no list"),
        (json.dumps(pair("q", None, "b", 1)), "is no text"),
        ('{"sentence1": "a", "sentence2": "b", "similarity": true}', "no label from 0 to 1"),
    ],
)
def test_a_file_that_is_none_is_refused_by_its_line(tmp_path, line, complaint):
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=complaint):
        read_labels(path)


def test_the_command_writes_a_card(tmp_path, capsys):
    rows = [pair(f"q{i}", "alpha" if i % 3 else "gamma", "alpha beta", 1 if i % 3 else 2) for i in range(12)]
    path = write(tmp_path / "labels.jsonl", [*rows, *rows])
    words = ["evaluate-judge", "--metric", "token_f1", "--on", str(path), "--storage", str(tmp_path / "runs")]
    assert main([*words, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["spearman"], card["ceiling"], card["n"], card["coverage"]) == (
        pytest.approx(1),
        pytest.approx(1),
        24,
        1,
    )
    assert json.loads(Path(card.pop("card")).read_text()) == card
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "token_f1 against people on labels.jsonl, 100% of the answers scored" in out
    assert "overall       24  1.000 (1.000 to 1.000)" in out
    assert "by bootstrap over 12 questions" in out


@pytest.mark.parametrize(
    ("metric", "complaint"),
    [
        ("token_f2", "did you mean 'token_f1'"),
        ("span_recall", "unknown"),
        ("faithfulness", "asks a judge; give a sweep file that has one: --judge SWEEP.yaml"),
        ("answerability", "asks a judge"),
    ],
)
def test_the_command_says_what_it_lacks(tmp_path, capsys, metric, complaint):
    path = write(tmp_path / "labels.jsonl", [pair("q", "a", "b", 1)])
    assert main(["evaluate-judge", "--metric", metric, "--on", str(path), "--storage", str(tmp_path)]) == 2
    assert complaint in capsys.readouterr().err
