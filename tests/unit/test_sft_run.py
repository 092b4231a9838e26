"""The SFT pipeline on a tiny random Llama: exact resume, warm workers, token means, checkpoints without pickle."""

from __future__ import annotations

import json
import math
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sft_runs import ROWS, STOP, TOTAL, config, disturb, make_place, run, same, weights
from tiny import sums

from evaluators.base import Report
from pipelines.finetune.checkpoint import is_whole, read_report
from pipelines.finetune.sft import SFTPipeline
from pipelines.memo import open_memo
from pipelines.stage import Diverged, EvaluationJob, ModelSource, Services, UserError

SENSED = ("cost/joules", "cost/co2_grams")
"""NaN where the machine has no sensor of its power."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def fresh(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of the plain run, by a pipeline of its own."""
    folder = tmp_path_factory.mktemp("fresh")
    run(config(place), folder)
    return folder / f"checkpoint-{TOTAL}"


@pytest.mark.parametrize(
    "changed",
    [{}, {"precision": "bf16"}, {"adapter": "none", "learning_rate": 0.001}, {"gradient_accumulation_steps": 1}],
    ids=["lora", "bf16", "full", "a stop at the end of an epoch"],
)
def test_a_stopped_run_goes_on_bit_by_bit(place: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    settings = config(place, **changed)
    stop = 7 if changed.get("gradient_accumulation_steps") == 1 else STOP
    whole = run(settings, tmp_path / "whole", (stop, TOTAL))
    first = run(settings, tmp_path / "cut", (stop, TOTAL), stop=stop)
    disturb()
    start = tmp_path / "cut" / f"checkpoint-{stop}"
    second = run(settings, tmp_path / "cut", (TOTAL,), start=str(start), start_resource=stop)
    assert same(tmp_path / "whole" / f"checkpoint-{TOTAL}", tmp_path / "cut" / f"checkpoint-{TOTAL}")
    assert not same(start, tmp_path / "cut" / f"checkpoint-{TOTAL}")
    one, two = whole[-1], second[-1]
    assert one.scores[0].record() == two.scores[0].record()
    for name in ("train/loss", "train/grad_norm", "train/learning_rate", "train/epoch", "cost/tokens"):
        assert one.telemetry[name] == two.telemetry[name], name
    assert two.telemetry["cost/seconds"] > first[-1].telemetry["cost/seconds"]
    states = [json.loads((tmp_path / n / f"checkpoint-{TOTAL}" / "state.json").read_text()) for n in ("whole", "cut")]
    for name in ("schedule", "param_groups", "random", "step"):
        assert states[0][name] == states[1][name], name


def test_milestones_do_not_change_a_run(place: Path, fresh: Path, tmp_path: Path) -> None:
    run(config(place), tmp_path, (1, 3, 5, TOTAL), report_every=2)
    assert same(fresh, tmp_path / f"checkpoint-{TOTAL}")


@pytest.mark.parametrize("before", [{"lora_r": 2, "use_rslora": True}, {"adapter": "none"}, {"precision": "bf16"}])
def test_a_warm_worker_gives_the_weights_of_a_fresh_one(
    place: Path, fresh: Path, tmp_path: Path, before: dict[str, Any]
) -> None:
    warm = SFTPipeline()
    run(config(place, **before), tmp_path / "first", pipeline=warm)
    run(config(place), tmp_path / "warm", pipeline=warm)
    assert same(tmp_path / "warm" / f"checkpoint-{TOTAL}", fresh)


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_every_trained_weight_moves_and_the_loss_falls(place: Path, tmp_path: Path, adapter: str) -> None:
    reports = run(config(place, adapter=adapter, max_steps=30), tmp_path, (1, 30))
    before, after = weights(tmp_path / "checkpoint-1"), weights(tmp_path / "checkpoint-30")
    assert len(before) == (28 if adapter == "lora" else 21)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    first, last = (report.scores[0].value for report in reports)
    assert last < first - 0.2
    assert reports[-1].telemetry["train/loss"] < reports[0].telemetry["train/loss"] - 0.2


def test_the_disk_holds_safetensors_and_json_only(place: Path, tmp_path: Path) -> None:
    run(config(place), tmp_path / "lora", (4, TOTAL))
    run(config(place, adapter="none"), tmp_path / "full")
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja"}
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == ["checkpoint-4", f"checkpoint-{TOTAL}"]
    assert sorted(p.name for p in (tmp_path / "lora" / "checkpoint-4").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "complete.json",
        "optimizer.safetensors",
        "state.json",
        "trainer_state.json",
    ]
    assert all(is_whole(p) for p in tmp_path.glob("*/checkpoint-*"))


def test_a_step_is_the_mean_over_all_its_tokens(place: Path, tmp_path: Path) -> None:
    shapes = {"4x1": (4, 1), "2x2": (2, 2), "1x4": (1, 4)}
    found = {}
    for name, (micro, accumulation) in shapes.items():
        changed = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation, "lora_dropout": 0.0}
        [found[name]] = run(config(place, max_steps=1, **changed), tmp_path / name, (1,))
    for name in ("train/loss", "train/grad_norm"):
        values = [report.telemetry[name] for report in found.values()]
        assert values == pytest.approx([values[0]] * 3, rel=1e-5), name


def test_the_first_loss_and_gradient_are_trls(place: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = sums(ROWS)
    settings = config(place, adapter="none", micro_batch_size=ROWS, gradient_accumulation_steps=1, max_steps=1)
    [ours] = run(settings, tmp_path / "ours", (1,))
    kept: list[dict[str, float]] = []

    class Keep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            kept.append(dict(logs))

    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(place / "model"),
        SFTConfig(
            str(tmp_path / "trl"),
            per_device_train_batch_size=ROWS,
            max_steps=1,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(place / "model"),
        callbacks=[Keep()],
    )
    trainer.train()
    assert ours.telemetry["train/loss"] == pytest.approx(kept[0]["loss"], rel=1e-4)
    assert ours.telemetry["train/grad_norm"] == pytest.approx(kept[0]["grad_norm"], rel=1e-4)


def test_the_loss_on_rows_is_what_the_trainer_computes_on_them(place: Path, tmp_path: Path) -> None:
    settings = config(
        place, lora_dropout=0.0, micro_batch_size=3, gradient_accumulation_steps=5, max_steps=1, eval_batch_size=4
    )
    [trained] = run(settings, tmp_path / "run", (1,))
    job = EvaluationJob(settings, ModelSource(settings["base_model"]), "train", ({"type": "loss"},))
    [score] = SFTPipeline().evaluate(job)
    assert score.n == ROWS
    assert score.value == pytest.approx(trained.telemetry["train/loss"], rel=1e-5)


def test_a_loss_past_its_multiple_has_diverged(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"the training loss .* at step \d+ is above .*, 1.2 times the run's first"):
        run(config(place, adapter="none", learning_rate=1.0, loss_multiple=1.2, max_steps=30), tmp_path, (30,))


def test_a_loss_that_is_no_number_has_diverged(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"(nan|inf) at step \d"):
        run(config(place, learning_rate=1e30, loss_multiple=1e30, max_steps=30), tmp_path, (30,))


def test_the_limit_of_a_run_that_went_on_is_the_first_runs(place: Path, tmp_path: Path) -> None:
    run(config(place), tmp_path, (STOP, TOTAL), stop=STOP)
    state = json.loads((tmp_path / f"checkpoint-{STOP}" / "state.json").read_text())
    assert state["progress"]["first_loss"] > 4
    state["progress"]["first_loss"] = 0.001
    (tmp_path / f"checkpoint-{STOP}" / "state.json").write_text(json.dumps(state))
    with pytest.raises(Diverged, match=f"at step {STOP + 1} is above"):
        run(config(place), tmp_path, (TOTAL,), start=str(tmp_path / f"checkpoint-{STOP}"), start_resource=STOP)


def test_reports_come_where_they_are_due(place: Path, tmp_path: Path) -> None:
    end = ({"type": "perplexity"},)
    reports = run(config(place), tmp_path, (3, TOTAL), end_evaluators=end, report_every=2)
    assert [r.resource for r in reports] == [2, 3, 4, 6, TOTAL]
    assert [[s.key for s in r.scores] for r in reports] == [
        [],
        ["tune/loss"],
        [],
        [],
        ["tune/loss", "tune/perplexity"],
    ]
    assert [r.checkpoint for r in reports] == [None, "checkpoint-3", None, None, f"checkpoint-{TOTAL}"]
    measured = [v for r in reports for name, v in r.telemetry.items() if name not in SENSED]
    assert all(map(math.isfinite, measured))
    kept = read_report(tmp_path / "checkpoint-3")
    assert kept.scores[0].record() == reports[1].scores[0].record()
    assert kept.telemetry == pytest.approx(dict(reports[1].telemetry), rel=0, abs=0, nan_ok=True)


def test_a_lost_report_is_made_again_first(place: Path, tmp_path: Path) -> None:
    first = run(config(place), tmp_path, (STOP, TOTAL), stop=STOP)
    start = str(tmp_path / f"checkpoint-{STOP}")
    again = run(config(place), tmp_path, (TOTAL,), start=start, start_resource=STOP, replay=True)
    assert [r.resource for r in again] == [STOP, TOTAL]
    assert again[0].telemetry == pytest.approx(dict(first[0].telemetry), rel=0, abs=0, nan_ok=True)


def test_it_runs_outside_the_main_thread(place: Path, tmp_path: Path) -> None:
    found: list[Report] = []
    thread = threading.Thread(target=lambda: found.extend(run(config(place, max_steps=2), tmp_path, (2,))))
    thread.start()
    thread.join(120)
    assert [r.resource for r in found] == [2]


def test_scores_of_a_checkpoint_are_those_it_was_reported_with(place: Path, tmp_path: Path) -> None:
    pipeline = SFTPipeline()
    [lora] = run(config(place), tmp_path / "lora", pipeline=pipeline)
    [full] = run(config(place, adapter="none", learning_rate=0.001), tmp_path / "full", pipeline=pipeline)
    services = Services(cache=str(tmp_path / "cache"))
    loss = ({"type": "loss"},)

    def score(source: ModelSource) -> Any:
        [made] = pipeline.evaluate(EvaluationJob(config(place), source, "tune", loss, services=services))
        return made

    base, adapter = str(place / "model"), tmp_path / "lora" / f"checkpoint-{TOTAL}"
    assert score(ModelSource(base, str(adapter))).record() == lora.scores[0].record()
    assert score(ModelSource(str(tmp_path / "full" / f"checkpoint-{TOTAL}"))).value == pytest.approx(
        full.scores[0].value
    )
    assert score(ModelSource(str(adapter))).value == pytest.approx(lora.scores[0].value, rel=1e-5)
    assert score(ModelSource(base)).value > lora.scores[0].value + 0.1
    assert [p.name.split("-")[0] for p in (tmp_path / "cache").iterdir() if p.is_dir()] == ["folded"]


def test_an_evaluation_asks_the_memo_first(place: Path, tmp_path: Path) -> None:
    services = Services(memo=partial(open_memo, tmp_path / "memo"))
    entries = ({"type": "loss"}, {"type": "exact_match", "max_new_tokens": 4})
    job = EvaluationJob(config(place), ModelSource(str(place / "model")), "tune", entries, services=services)
    first, second = SFTPipeline().evaluate(job), SFTPipeline().evaluate(job)
    assert [s.record() for s in first] == [s.record() for s in second]
    with open_memo(tmp_path / "memo") as memo:
        assert memo.stats().entries == 18


def test_a_split_that_is_not_there_cannot_be_scored(place: Path) -> None:
    job = EvaluationJob(config(place), ModelSource(str(place / "model")), "test", ({"type": "loss"},))
    with pytest.raises(UserError, match=r"datasets.test is not given"):
        SFTPipeline().evaluate(job)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"lora_target_modules": ["q_prj"]}, "q_prj match no module of the model; it has down_proj, gate_proj, k_proj"),
        ({"lora_target_modules": ["lm_head"]}, "an adapter on lm_head is not supported"),
    ],
)
def test_settings_that_do_not_fit_are_the_users(place: Path, tmp_path: Path, changed: Any, told: str) -> None:
    pipeline = SFTPipeline()
    with pytest.raises(UserError, match=told):
        run(config(place, **changed), tmp_path, pipeline=pipeline)
    assert run(config(place), tmp_path, pipeline=pipeline)[0].resource == TOTAL
