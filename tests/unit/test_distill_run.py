"""The pipeline `distill` on tiny random Llamas: exact resume, ensembles, projections that stay out of the checkpoint's model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sft_runs import STOP, TOTAL, config, disturb, make_place, quick, run, same
from tiny import save_model, tokenizer

from pipelines.finetune.checkpoint import content_hash, is_whole, read_report, write_complete
from pipelines.finetune.distill import DistillPipeline
from pipelines.finetune.layer_map import mapped
from pipelines.finetune.model import BaseModels, load_folder
from pipelines.finetune.teacher import load_teacher
from pipelines.lm import trained_logits
from pipelines.stage import Services, UserError
from pipelines.weights import BESIDE

SOFT = {"loss": {"type": "kl", "temperature": 2.0}}
QUIET = {"loss": {"type": "none"}}
WIDE = {"mse": {"type": "mse", "weight": 0.5}, "cosine": {"type": "cosine", "layer_map": [[1, 2]]}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of 2 layers, teachers of 3: one as wide, one wider and with a filled-up embedding."""
    made = make_place(tmp_path_factory.mktemp("distill"))
    save_model(made / "teacher", seed=1, layers=3, spread=0.3)
    save_model(made / "other", seed=2, layers=3, spread=0.3)
    save_model(made / "wide", seed=3, layers=3, hidden=48, words=len(tokenizer()) + 5, spread=0.3)
    return made


def settings(place: Path, **changed: Any) -> dict[str, Any]:
    plain = {"type": "distill", "adapter": "none", "learning_rate": 0.003, "teacher": str(place / "teacher")}
    return config(place, **plain | changed)


def distil(told: dict[str, Any], folder: Path, *rest: Any, **more: Any) -> Any:
    pipeline = more.pop("pipeline", None) or DistillPipeline()
    return run(told, folder, *rest, pipeline=pipeline, **more)


@pytest.mark.parametrize(
    "changed",
    quick(
        [
            {"adapter": "lora", "learning_rate": 0.01},
            {"loss": {"type": "jsd", "beta": 0.3}, "gradient_checkpointing": True, "precision": "bf16"},
            {**QUIET, "hidden": WIDE["mse"], "teacher": "wide", "gradient_checkpointing": True},
            {**SOFT, "hidden": WIDE["cosine"], "teacher": "wide", "adapter": "lora", "hard_weight": 0.0},
            {"hidden": {"type": "mi_alpha", "alpha": 0.5, "layer_map": "last"}, "optimizer": "schedule_free_adamw"},
            QUIET,
        ],
        "kl",
        "mi_alpha",
        ids=["kl", "jsd", "mse", "cosine", "mi_alpha", "none"],
    ),
)
def test_a_stopped_run_goes_on_bit_by_bit(place: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    changed = changed | ({"teacher": str(place / changed["teacher"])} if "teacher" in changed else {})
    told = settings(place, **changed)
    [_, one] = distil(told, tmp_path / "whole", (STOP, TOTAL))
    distil(told, tmp_path / "cut", (STOP, TOTAL), stop=STOP)
    disturb()
    start = tmp_path / "cut" / f"checkpoint-{STOP}"
    [two] = distil(told, tmp_path / "cut", (TOTAL,), start=str(start), start_resource=STOP)
    ends = [tmp_path / name / f"checkpoint-{TOTAL}" for name in ("whole", "cut")]
    assert same(*ends)
    assert not same(start, ends[1])
    assert one.scores[0].record() == two.scores[0].record()
    told_of = {name for name in one.telemetry if name.startswith("train/")}
    assert {name: one.telemetry[name] for name in told_of} == {name: two.telemetry[name] for name in told_of}
    trained = changed.get("hidden", {}).get("type")
    assert all((end / BESIDE).is_file() == (trained is not None) for end in ends)
    if trained is not None:
        first, last, again = (load_file(folder / BESIDE) for folder in (start, *ends))
        assert all(torch.equal(last[name], again[name]) and not torch.equal(last[name], first[name]) for name in last)


def test_without_a_teacher_it_is_sft(place: Path, tmp_path: Path) -> None:
    distil(settings(place, **QUIET), tmp_path / "distill")
    run(config(place, adapter="none", learning_rate=0.003), tmp_path / "sft")
    assert same(tmp_path / "distill" / f"checkpoint-{TOTAL}", tmp_path / "sft" / f"checkpoint-{TOTAL}")


def test_a_warm_worker_gives_the_weights_of_a_fresh_one(place: Path, tmp_path: Path) -> None:
    told = settings(place, hidden={"type": "mi_alpha"})
    warm = DistillPipeline()
    distil(settings(place, teacher=str(place / "other"), adapter="lora"), tmp_path / "first", pipeline=warm)
    distil(told, tmp_path / "warm", pipeline=warm)
    distil(told, tmp_path / "fresh")
    assert same(tmp_path / "warm" / f"checkpoint-{TOTAL}", tmp_path / "fresh" / f"checkpoint-{TOTAL}")


def test_every_loss_is_told_and_the_whole_is_their_weighted_sum(place: Path, tmp_path: Path) -> None:
    told = settings(
        place, max_steps=30, hard_weight=0.5, loss={"type": "kl", "weight": 2.0}, hidden={"type": "mse", "weight": 0.1}
    )
    first, last = distil(told, tmp_path, (1, 30))
    parts = {"train/hard_loss": 0.5, "train/soft_loss": 2.0, "train/hidden_loss": 0.1}
    for report in (first, last):
        whole = sum(weight * report.telemetry[name] for name, weight in parts.items())
        assert report.telemetry["train/loss"] == pytest.approx(whole, rel=1e-5)
    assert all(last.telemetry[name] < first.telemetry[name] for name in parts)


def test_splitting_a_step_changes_nothing(place: Path, tmp_path: Path) -> None:
    found = []
    for micro, accumulation in ((4, 1), (2, 2), (1, 4)):
        changed = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        told = settings(place, **SOFT, hidden={"type": "mi_alpha", "alpha": 0.3}, **changed)
        [report] = distil(told, tmp_path / f"{micro}", (1,))
        found.append(report.telemetry)
    for name in ("train/loss", "train/soft_loss", "train/hidden_loss", "train/grad_norm"):
        assert [one[name] for one in found] == pytest.approx([found[0][name]] * 3, rel=1e-4), name


def test_checkpointing_changes_no_gradient_of_hidden_states(place: Path, tmp_path: Path) -> None:
    found = []
    for kept in (False, True):
        told = settings(place, **QUIET, hidden={"type": "mi_alpha"}, gradient_checkpointing=kept, max_steps=1)
        [report] = distil(told, tmp_path / str(kept), (1,))
        found.append((report.telemetry["train/hidden_loss"], report.telemetry["train/grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_what_is_trained_beside_a_student_is_no_part_of_it(place: Path, tmp_path: Path) -> None:
    told = settings(place, hidden=WIDE["mse"], teacher=str(place / "wide"))
    distil(told, tmp_path, (3,), total=3)
    folder = tmp_path / "checkpoint-3"
    assert sorted(load_file(folder / "model.safetensors")) == sorted(load_file(place / "model" / "model.safetensors"))
    assert set(load_file(folder / BESIDE)) == {"maps.0.weight", "maps.1.weight"}
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".jinja"}
    assert is_whole(folder)
    assert load_folder(folder).model.config.num_hidden_layers == 2
    before = content_hash(folder)
    (folder / BESIDE).write_bytes(b"another")
    write_complete(folder, read_report(folder))
    assert content_hash(folder) == before


def test_a_teacher_is_not_changed(place: Path, tmp_path: Path) -> None:
    pipeline = DistillPipeline()
    told = settings(place, teacher=str(place / "model"), hidden={"type": "cosine"})
    distil(told, tmp_path, pipeline=pipeline)
    assert pipeline._teacher is not None
    kept = pipeline._teacher[1].model.state_dict()
    for name, value in load_file(place / "model" / "model.safetensors").items():
        assert torch.equal(kept[name], value), name
    assert all(parameter.grad is None for parameter in pipeline._teacher[1].model.parameters())


def batch(place: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, 200, (3, 7))
    labels = ids.clone()
    labels[:, :3] = -100
    return ids, torch.ones_like(ids), labels


def test_an_ensemble_answers_with_the_mean_of_probabilities(place: Path, tmp_path: Path) -> None:
    names = [str(place / name) for name in ("teacher", "other", "model")]
    teacher = load_teacher(names, tmp_path, trust_remote_code=False, device="cpu")
    asked = batch(place)
    together, _ = teacher.answer(*asked)
    with torch.no_grad():
        apart = [trained_logits(member.model, *asked)[0].softmax(-1) for member in teacher.members]
    assert torch.allclose(together.softmax(-1), torch.stack(apart).mean(0), atol=1e-6)
    alone, _ = load_teacher(names[:1], tmp_path, trust_remote_code=False, device="cpu").answer(*asked)
    assert torch.allclose(alone.softmax(-1), apart[0], atol=1e-6)


def test_an_ensemble_teaches(place: Path, tmp_path: Path) -> None:
    told = settings(place, teacher=[str(place / name) for name in ("teacher", "other")], hard_weight=0.0, max_steps=20)
    first, last = distil(told, tmp_path, (1, 20))
    assert last.telemetry["train/soft_loss"] < first.telemetry["train/soft_loss"]


def test_a_filled_up_embedding_is_the_same_vocabulary_and_another_one_is_refused(place: Path, tmp_path: Path) -> None:
    assert distil(settings(place, teacher=str(place / "wide"), max_steps=1), tmp_path / "filled", (1,))
    words = json.loads((place / "other" / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    strange = save_model(tmp_path / "strange", seed=4)
    (strange / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match=r"teacher: .*strange has another vocabulary .* is 'b' and not 'a'"):
        distil(settings(place, teacher=str(strange)), tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"teacher": "nowhere/at/all"}, "teacher: nowhere/at/all does not exist"),
        ({"hidden": {"type": "mse", "layer_map": [[0, 3]]}}, "the teacher has no layer 3: it has 3"),
        ({"hidden": {"type": "mse", "layer_map": [[2, 0]]}}, "the student has no layer 2: it has 2"),
        ({"keep_layers": 3}, "keep_layers: 3 layers are to be kept, but the model has 2"),
        ({"keep_layers": (0, 2)}, "there is no layer 2: the model has 2"),
    ],
)
def test_what_does_not_fit_is_said(place: Path, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        distil(settings(place, **changed), tmp_path)


def test_layers_are_mapped() -> None:
    assert mapped("skip", 4, 30) == {0: 7, 1: 14, 2: 22, 3: 29}
    assert mapped("skip", 3, 3) == {0: 0, 1: 1, 2: 2}
    assert mapped("skip", 4, 2) == {0: 0, 1: 0, 2: 1, 3: 1}
    assert mapped("last", 2, 5) == {0: 3, 1: 4}
    assert mapped(((0, 4), (1, 0)), 2, 5) == {0: 4, 1: 0}
    with pytest.raises(UserError, match="last needs a teacher with as many layers, but it has 2 and the student 3"):
        mapped("last", 3, 2)


def test_a_cut_of_the_teacher_learns_from_it(place: Path, tmp_path: Path) -> None:
    services = Services(cache=str(tmp_path / "cache"))
    told = settings(place, base_model=str(place / "teacher"), keep_layers=(0, 2), max_steps=4)
    distil(told, tmp_path / "run", (4,), services=services)
    student = load_folder(tmp_path / "run" / "checkpoint-4").model
    assert student.config.num_hidden_layers == 2
    begun = BaseModels(str(tmp_path / "cache")).load(f"layers://0,2/{place / 'teacher'}").model
    whole = load_folder(place / "teacher").model
    for at, layer in enumerate((0, 2)):
        for name, value in whole.model.layers[layer].named_parameters():
            assert torch.equal(begun.model.layers[at].get_parameter(name), value)
            assert not torch.equal(student.model.layers[at].get_parameter(name), value)
