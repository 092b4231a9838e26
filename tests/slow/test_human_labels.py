"""Token F1 against the human labels of RAGChecker, by the real command."""

import json
from pathlib import Path

import pytest

from sweeps.cli import main

LABELS = Path(__file__).parents[2].parent / "shared" / "data" / "rag_human_labels" / "pairs.jsonl"

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not LABELS.is_file(), reason="RAGChecker's human labels are not here")
def test_token_f1_agrees_with_people_less_than_they_do_among_themselves(tmp_path, capsys):
    words = ["evaluate-judge", "--metric", "token_f1", "--on", str(LABELS), "--storage", str(tmp_path), "--json"]
    assert main(words) == 0
    card = json.loads(capsys.readouterr().out)
    overall = card["measures"]["overall"]
    assert (overall["n"], overall["clusters"], card["coverage"]) == (280, 140, 1)
    assert overall["spearman"] == pytest.approx(0.670, abs=0.002)
    assert overall["pearson"] == pytest.approx(0.589, abs=0.002)
    assert overall["spearman"] < overall["ceiling"] == pytest.approx(0.729, abs=0.002)
    low, high = overall["spearman_interval"]
    assert 0.4 < low < overall["spearman"] < high < 0.9
