"""Public benchmarks: our model under lm-evaluation-harness answers as its own does, and its numbers come with items and errors."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import save_model

from evaluators import evaluate_all
from evaluators.base import Generation, GenerationRequest, ItemSet, RowLoss, UserError, summarise
from evaluators.benchmarks import _jackknife, together
from evaluators.multiple_choice import judge, read_questions

harness = pytest.importorskip("evaluators.harness", reason="lm-eval is not installed")

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {validation: choice_validation.jsonl, test: choice_test.jsonl}}
output_type: multiple_choice
validation_split: validation
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: mcc}]
"""
ANSWER = """
task: tiny_answer
dataset_path: json
dataset_kwargs: {data_files: {test: answer_test.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["q", "z"], do_sample: false, max_gen_toks: 9}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
TEXT = """
task: tiny_text
dataset_path: json
dataset_kwargs: {data_files: {test: answer_test.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
GROUP = """
group: tiny_group
task: [tiny_choice, tiny_answer]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local tasks whose data files stand beside them."""
    made = tmp_path_factory.mktemp("tasks")
    for name, text in (("choice", CHOICE), ("answer", ANSWER), ("text", TEXT), ("group", GROUP)):
        (made / f"{name}.yaml").write_text(text)
    draw = random.Random(0)
    word = lambda: "".join(draw.choice("abcdefghijk ") for _ in range(draw.randrange(3, 12))) + "x"  # noqa: E731
    for split in ("validation", "test"):
        rows = [{"question": word(), "choices": [word(), word(), word()], "gold": draw.randrange(3)} for _ in range(12)]
        (made / f"choice_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [
        {"question": word(), "answer": word(), "text": " ".join(word() for _ in range(60 if i == 3 else 4))}
        for i in range(6)
    ]
    (made / "answer_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch

    from pipelines.finetune.model import load_folder

    found = load_folder(save_model(tmp_path_factory.mktemp("tiny")))
    with torch.no_grad():
        for name, weight in found.model.named_parameters():
            if "norm" not in name:
                weight.mul_(8.0)
    return found


def entry(folder: Path, *tasks: Any, **more: Any) -> dict[str, Any]:
    named = [{"name": task} if isinstance(task, str) else task for task in tasks]
    return {"type": "lm_eval", "tasks": named, "include_path": str(folder), **more}


@pytest.mark.slow
def test_our_model_and_the_harness_own_give_the_same_samples(loaded: Any, folder: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from pipelines.lm import LocalLanguageModel

    theirs = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4, backend="causal")
    manager = harness._manager(str(folder), False)
    names = ["tiny_choice", "tiny_answer", "tiny_text"]
    expected = lm_eval.simple_evaluate(model=theirs, tasks=names, task_manager=manager, bootstrap_iters=0)
    ours = LocalLanguageModel(loaded.model, loaded.tokenizer, batch_size=4)
    tasks: list[Any] = [*names[:2], {"name": "tiny_text", "metric": "word_perplexity"}]
    scores = {s.name: s for s in evaluate_all([entry(folder, *tasks)], ours, [], "test", tmp_path)}
    [kept] = tmp_path.glob("test-lm_eval-*.jsonl")
    samples = [json.loads(line) for line in kept.read_text().splitlines()]
    for name in names:
        mine = [sample for sample in samples if sample["task"] == name]
        want = expected["samples"][name]
        assert [s["doc"] for s in mine] == [s["doc"] for s in want]
        assert [s["arguments"] for s in mine] == json.loads(json.dumps([s["arguments"] for s in want]))
        for a, b in zip(mine, want, strict=True):
            if name == "tiny_answer":
                assert a["resps"] == b["resps"]
            else:
                assert np.ravel(a["filtered_resps"]).tolist() == pytest.approx(
                    np.ravel(b["filtered_resps"]).tolist(), rel=2e-6
                )
        metric = {"tiny_choice": "acc,none", "tiny_answer": "exact_match,none", "tiny_text": "word_perplexity,none"}[
            name
        ]
        assert scores[f"lm_eval.{name}"].value == pytest.approx(expected["results"][name][metric], rel=1e-6)
    assert "lm_eval" not in scores  # more is better of two, less of the third
    assert scores["lm_eval.tiny_text"].se > 0
    assert len({sample["resps"][0][0] for sample in samples if sample["task"] == "tiny_answer"}) > 3


class Scripted:
    """A language model whose likelihoods are functions of the texts."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return [Generation(str(r.prompt)[:3], 1, 1) for r in requests]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        return [(-float(sum(map(ord, a + b)) % 97), False) for a, b in pairs]

    def token_losses(self, rows: Sequence[Any]) -> list[RowLoss]:
        raise AssertionError("benchmarks have rows of their own")


def test_a_sweep_decides_on_validation_rows_that_tune_and_select_share_and_test_has_its_own(folder: Path) -> None:
    found = {}
    for split in ("tune", "select", "test"):
        [score] = evaluate_all([entry(folder, "tiny_choice")], Scripted(), [], split)
        assert score.key == f"{split}/lm_eval.tiny_choice"
        found[split] = set(score.item_set.ids)
    assert len(found["tune"] | found["select"]) == 12
    assert found["tune"]
    assert found["select"]
    assert not found["tune"] & found["select"]
    assert len(found["test"]) == 12
    assert not found["test"] & (found["tune"] | found["select"])
    assert evaluate_all([entry(folder, "tiny_answer")], Scripted(), [], "tune") == ()
    [few] = evaluate_all([entry(folder, "tiny_choice", limit=5)], Scripted(), [], "test")
    assert few.n == 5


def test_several_tasks_are_one_weighted_score_with_the_error_of_its_strata(folder: Path) -> None:
    tasks = [{"name": "tiny_choice", "weight": 3}, {"name": "tiny_answer", "weight": 1}]
    whole, choice, answer = evaluate_all([entry(folder, *tasks)], Scripted(), [], "test")
    assert [s.name for s in (whole, choice, answer)] == ["lm_eval", "lm_eval.tiny_choice", "lm_eval.tiny_answer"]
    assert whole.value == pytest.approx(0.75 * choice.value + 0.25 * answer.value)
    assert whole.se == pytest.approx(math.hypot(0.75 * choice.se, 0.25 * answer.se))
    assert whole.se > 0
    again = summarise("lm_eval", "test", "maximize", whole.item_set, whole.items)
    assert again.value == pytest.approx(whole.value)  # whoever pairs items weighs as the score does
    [group] = evaluate_all([entry(folder, "tiny_group")], Scripted(), [], "test")
    assert group.value == pytest.approx((choice.value + answer.value) / 2)


def test_a_number_of_all_documents_together_has_items_whose_mean_it_is(folder: Path) -> None:
    tasks = [{"name": "tiny_choice", "metric": "mcc"}]
    [score] = evaluate_all([entry(folder, *tasks)], Scripted(), [], "test")
    assert np.mean(score.items) == pytest.approx(score.value, abs=1e-6)
    assert score.se > 0


def test_the_jackknife_of_a_mean_is_the_mean_s_own_error() -> None:
    values = np.random.default_rng(0).normal(size=40)
    ids = tuple(f"{i:02d}" for i in range(40))
    judged = harness.Judged("t", "m", "none", True, tuple(values), float(np.mean(values)), np.mean, ids, ())
    found = _jackknife("m", "test", "maximize", ids, judged)
    plain = summarise("m", "test", "maximize", ItemSet(ids), values)
    assert found.value == pytest.approx(plain.value)
    assert found.se == pytest.approx(plain.se)
    assert together("both", [plain, plain], [1, 1]).se == pytest.approx(plain.se / math.sqrt(2))


def test_what_can_t_be_had_is_said(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no metric 'f1'; there are: acc,none mcc,none acc_norm,none"):
        evaluate_all([entry(folder, {"name": "tiny_choice", "metric": "f1"})], Scripted(), [], "test")
    with pytest.raises(UserError, match="less is better; name a metric"):
        evaluate_all([entry(folder, "tiny_text")], Scripted(), [], "test")
    with pytest.raises(UserError, match="shows no chat format"):
        evaluate_all([entry(folder, "tiny_choice", apply_chat_template=True)], Scripted(), [], "test")


def test_the_process_draws_as_before(folder: Path) -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    evaluate_all([entry(folder, "tiny_choice")], Scripted(), [], "test")
    assert (random.random(), np.random.rand()) == expected


def test_a_choice_is_judged_by_its_sum_and_by_its_length() -> None:
    assert judge(["ab", "abcdefgh"], [-3.0, -4.0], 0) == (1.0, 0.0, 0.0)
    assert judge(["é" * 4, "abcdef"], [-4.0, -5.0], 1) == (0.0, 1.0, 0.0)  # 4 characters, 8 bytes
    assert judge(["a", "b"], [-1.0, -1.0], 0)[0] == 1.0  # the first of equals
    assert all(map(math.isnan, judge(["a", "b"], [-1.0, math.nan], 0)))


def test_rows_of_choices_are_read_and_mistakes_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"question": "q", "choices": ["a", "b"], "gold": "b"}\n\n{"question": "r", "choices": ["a", "b"], "gold": 0}\n'
    )
    assert [q.gold for q in read_questions(path)] == [1, 0]
    assert len(read_questions(path, 1)) == 1
    file = {"type": "multiple_choice", "tune": str(path)}
    scores = evaluate_all([file], Scripted(), [], "tune")
    assert [s.name for s in scores] == ["multiple_choice", "multiple_choice.acc_norm", "multiple_choice.acc_bytes"]
    assert scores[0].n == 2
    assert evaluate_all([file], Scripted(), [], "test") == ()
    for line, wrong in (
        ('{"question": "q", "choices": ["a", "b"], "gold": 2}', "gold is 2, which is none of the 2 choices"),
        ('{"question": "q", "choices": ["a"], "gold": 0}', "no list of two texts"),
        ('{"question": "q", "gold": 0}', "no mapping of question, choices and gold"),
        ("[", "line 1"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match=wrong):
            read_questions(path)


def test_a_run_scores_benchmarks_keeps_samples_and_trains_on_as_without_them(folder: Path, tmp_path: Path) -> None:
    import torch
    from sft_runs import config, make_place, run, weights

    from pipelines.finetune.sft import SFTPipeline
    from pipelines.stage import EvaluationJob, ModelSource

    place = make_place(tmp_path / "place")
    settings = config(place, max_steps=4)
    tasks = entry(folder, "tiny_choice", "tiny_answer", apply_chat_template=True, num_fewshot=1)
    with_it, without = tmp_path / "with", tmp_path / "without"
    reports = run(settings, with_it, (2, 4), rung_evaluators=({"type": "loss"}, tasks))
    run(settings, without, (2, 4))
    assert [score.name for score in reports[0].scores] == ["loss", "lm_eval", "lm_eval.tiny_choice"]
    for name, weight in weights(with_it / "checkpoint-4").items():
        assert torch.equal(weight, weights(without / "checkpoint-4")[name])
    [kept] = (with_it / "samples-2").iterdir()
    samples = [json.loads(line) for line in kept.read_text().splitlines()]
    assert {sample["task"] for sample in samples} == {"tiny_choice"}
    assert samples[0]["arguments"][0][0].endswith("<|im_start|>assistant\n")
    assert samples[0]["arguments"][0][0].count("<|im_start|>user") == 2
    model = ModelSource(settings["base_model"], str(with_it / "checkpoint-4"))
    job = EvaluationJob(settings, model, "tune", (tasks,), samples=str(tmp_path / "final"))
    again = SFTPipeline().evaluate(job)
    assert [s.value for s in again] == [s.value for s in reports[1].scores[1:]]
    assert list((tmp_path / "final").iterdir())
