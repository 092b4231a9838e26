"""Words shared with the reference, held against what people say of real RAG answers.

The protocol of RAGChecker (Ru et al. 2024, arXiv 2408.08067): of two answers to one question, the second's score minus the
first's, against how much better people call the second (-2 to 2); two people judge each pair, and each label counts once.
The data beside the checkout are the pairs with an even number, half of the published ones.
"""

import json

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from evaluators.answer_words import word_overlap


@pytest.fixture(scope="module")
def pairs(shared_data):
    path = shared_data / "rag_human_labels" / "pairs.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def correlations(pairs, label, score):
    preferred = [
        score(pair["model2"]["response"], pair["gt_answer"]) - score(pair["model1"]["response"], pair["gt_answer"])
        for pair in pairs
    ]
    said = [pair[label] for pair in pairs]
    return pearsonr(preferred, said).statistic, spearmanr(preferred, said).statistic


def test_two_people_judge_each_pair(pairs):
    labels: dict[int, list[int]] = {}
    for pair in pairs:
        labels.setdefault(pair["instance_id"], []).append(pair["overall_label"])
    both = np.array(list(labels.values()))
    assert both.shape == (140, 2)
    assert spearmanr(*both.T).statistic == pytest.approx(0.7348, abs=5e-5)


@pytest.mark.parametrize(
    ("label", "pearson", "spearman"),
    [
        ("overall_label", 0.5889, 0.6703),
        ("correctness_label", 0.4426, 0.5204),
        ("completeness_label", 0.6156, 0.6769),
    ],
)
def test_f1_agrees_with_people_as_measured(pairs, label, pearson, spearman):
    found = correlations(pairs, label, lambda answer, reference: word_overlap(answer, reference)[0])
    assert found == pytest.approx((pearson, spearman), abs=5e-5)


def test_f1_agrees_better_than_length(pairs):
    by_length = correlations(pairs, "overall_label", lambda answer, reference: len(answer))
    assert by_length == pytest.approx((0.2619, 0.3021), abs=5e-5)
    by_words = correlations(pairs, "overall_label", lambda answer, reference: word_overlap(answer, reference)[0])
    assert by_words[0] > by_length[0]
    assert by_words[1] > by_length[1]
