"""Settings of training beside the plain run: DoRA, fp16, checkpointed activations, unfrozen parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from sft_runs import STOP, TOTAL, config, go_on, make_place, quick, run, same, weights
from transformers import AutoModelForCausalLM

from pipelines.finetune.checkpoint import read_report
from pipelines.finetune.freezing import unfreeze
from pipelines.finetune.model import resolve
from pipelines.finetune.sft import SFTPipeline
from pipelines.finetune.trainer import Trainer
from pipelines.stage import Diverged, EvaluationJob, ModelSource, Services, UserError

LAST = f"checkpoint-{TOTAL}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="module")
def fresh(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of the plain run, by a pipeline of its own."""
    folder = tmp_path_factory.mktemp("fresh")
    run(config(place), folder)
    return folder / LAST


def read_state(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "state.json").read_text()))


@pytest.mark.parametrize(
    "changed",
    quick(
        [
            {"use_dora": True},
            {"precision": "fp16"},
            {"gradient_checkpointing": True},
            {"adapter": "none", "unfrozen_parameters": ["model.layers.1", "model.norm"]},
        ],
        "fp16",
        "unfrozen",
        ids=["DoRA", "fp16", "checkpointed", "unfrozen"],
    ),
)
def test_it_goes_on_bit_by_bit(place: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    settings = config(place, **changed)
    whole = run(settings, tmp_path / "whole", (STOP, TOTAL))
    second = go_on(settings, tmp_path / "whole", STOP)
    assert same(tmp_path / "whole" / LAST, tmp_path / "second" / LAST)
    assert not same(tmp_path / "whole" / f"checkpoint-{STOP}", tmp_path / "second" / LAST)
    assert whole[-1].scores[0].record() == second[-1].scores[0].record()
    states = [read_state(tmp_path / name / LAST) for name in ("whole", "second")]
    for name in ("schedule", "param_groups", "random", "scaler", "step"):
        assert states[0][name] == states[1][name], name


@pytest.mark.parametrize("changed", [{"use_dora": True}, {"gradient_checkpointing": True}, {"precision": "fp16"}])
def test_it_leaves_a_warm_worker_as_it_was(place: Path, fresh: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    warm = SFTPipeline()
    run(config(place, **changed), tmp_path / "first", pipeline=warm)
    run(config(place), tmp_path / "warm", pipeline=warm)
    assert same(tmp_path / "warm" / LAST, fresh)


def test_every_weight_of_dora_moves_and_the_loss_falls(place: Path, tmp_path: Path) -> None:
    reports = run(config(place, use_dora=True, max_steps=30), tmp_path, (1, 30))
    before, after = weights(tmp_path / "checkpoint-1"), weights(tmp_path / "checkpoint-30")
    assert len(before) == 14 * 3
    assert sum("lora_magnitude_vector" in name for name in before) == 14
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert reports[-1].scores[0].value < reports[0].scores[0].value - 0.2


def test_plain_peft_loads_dora_and_folding_it_is_exact(place: Path, tmp_path: Path) -> None:
    settings = config(place, use_dora=True)
    [made] = run(settings, tmp_path / "dora")
    adapter = tmp_path / "dora" / LAST
    base = str(place / "model")
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base)
        untouched = plain(ids).logits
        adapted = PeftModel.from_pretrained(plain, str(adapter))(ids).logits
        folded = AutoModelForCausalLM.from_pretrained(resolve(str(adapter), tmp_path / "cache"))(ids).logits
    assert float((adapted - untouched).abs().max()) > 0.01
    assert torch.allclose(adapted, folded, atol=1e-5)
    loss = ({"type": "loss"},)
    job = EvaluationJob(settings, ModelSource(base, str(adapter)), "tune", loss, services=Services())
    [score] = SFTPipeline().evaluate(job)
    assert score.record() == made.scores[0].record()


@pytest.mark.parametrize("changed", [{}, {"use_dora": True}, {"adapter": "none"}, {"sample_packing": True}], ids=str)
def test_checkpointed_activations_change_no_bit(place: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    settings = {"lora_dropout": 0.1, **changed}
    run(config(place, **settings), tmp_path / "kept")
    run(config(place, **settings, gradient_checkpointing=True), tmp_path / "again")
    assert same(tmp_path / "kept" / LAST, tmp_path / "again" / LAST)


def test_checkpointed_activations_are_computed_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x: (calls.append(torch.is_grad_enabled()), forward(self, x))[1]
    )
    counts = []
    for asked in (False, True):
        calls.clear()
        run(config(place, gradient_checkpointing=asked, max_steps=1), tmp_path / str(asked), (1,), rung_evaluators=())
        counts.append(len(calls))
    assert counts == [4, 8]  # 2 layers, 2 micro batches


def test_only_unfrozen_parameters_move(place: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    patterns = ["model.layers.1.mlp", r".*norm\.weight$"]
    settings = config(place, adapter="none", learning_rate=0.01, unfrozen_parameters=patterns)
    run(settings, tmp_path)
    before, after = load_file(place / "model" / "model.safetensors"), weights(tmp_path / LAST)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {name for name in before if name.startswith("model.layers.1.mlp") or name.endswith("norm.weight")}
    assert before.keys() == after.keys()
    assert moved == wanted
    assert len(moved) == 3 + 5
    optimizer = load_file(tmp_path / LAST / "optimizer.safetensors")
    assert len({name.partition(".")[0] for name in optimizer}) == len(wanted)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / LAST)
    assert all(torch.equal(model.state_dict()[name], after[name]) for name in after)


def test_a_pattern_without_a_parameter_names_near_ones(place: Path, tmp_path: Path) -> None:
    settings = config(place, adapter="none", unfrozen_parameters=["model.layers.1", "layers.0.mlp", "nrom"])
    with pytest.raises(UserError) as told:
        run(settings, tmp_path)
    assert "'layers.0.mlp' matches the beginning of no parameter's name; there are for example" in str(told.value)
    assert "model.layers.0.mlp.gate_proj.weight" in str(told.value)
    assert "'nrom' matches" in str(told.value)
    assert "'model.layers.1' matches" not in str(told.value)


def test_tied_weights_are_one_parameter(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    assert unfreeze(model, ["lm_head"]) == ["model.embed_tokens.weight"]
    assert "model.embed_tokens.weight is tied to lm_head.weight; both are trained" in caplog.text
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["model.embed_tokens.weight"]
    assert len(unfreeze(model, None)) == len(list(model.parameters()))


def test_fp16_learns_and_says_its_scale(place: Path, fresh: Path, tmp_path: Path) -> None:
    reports = run(config(place, precision="fp16", max_steps=30), tmp_path, (1, 30))
    assert reports[-1].scores[0].value < reports[0].scores[0].value - 0.2
    assert reports[0].telemetry["train/loss_scale"] == 65536.0
    assert reports[0].telemetry["train/skipped_steps"] == 0.0
    scale = 65536.0 / 2 ** reports[-1].telemetry["train/skipped_steps"]
    assert reports[-1].telemetry["train/loss_scale"] == scale
    assert read_state(tmp_path / "checkpoint-30")["scaler"]["scale"] == scale
    assert "train/loss_scale" not in read_report(fresh).telemetry


def overflowing(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the gradients of some steps infinite, as an overflow in fp16 does."""
    backward = Trainer.training_step

    def step(self: Any, model: Any, inputs: Any, items: Any = None) -> Any:
        loss = backward(self, model, inputs, items)
        if self.state.global_step + 1 in steps:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(Trainer, "training_step", step)


@pytest.mark.parametrize("norm", [1.0, 0.0])
def test_a_step_that_overflows_is_left_out(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: float
) -> None:
    overflowing(monkeypatch, {3, 4})
    settings = config(place, precision="fp16", max_grad_norm=norm)
    reports = run(settings, tmp_path / "whole", (2, 3, STOP, TOTAL))
    assert [r.telemetry["train/skipped_steps"] for r in reports] == [0.0, 1.0, 2.0, 2.0]
    assert [r.telemetry["train/loss_scale"] for r in reports] == [65536.0, 32768.0, 16384.0, 16384.0]
    assert same(tmp_path / "whole" / "checkpoint-2", tmp_path / "whole" / "checkpoint-3")
    assert not same(tmp_path / "whole" / "checkpoint-3", tmp_path / "whole" / f"checkpoint-{STOP}")
    [last] = go_on(settings, tmp_path / "whole", 3)
    assert same(tmp_path / "whole" / LAST, tmp_path / "second" / LAST)
    for name in ("train/skipped_steps", "train/loss_scale"):
        assert last.telemetry[name] == reports[-1].telemetry[name], name


def test_a_loss_scale_that_collapses_has_diverged(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflowing(monkeypatch, set(range(99)))
    with pytest.raises(Diverged, match=r"the loss scale fell below 1 at step 17: .* take precision: bf16 or fp32"):
        run(config(place, precision="fp16", max_steps=30), tmp_path, (30,))


def test_infinite_gradients_in_fp32_have_diverged(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflowing(monkeypatch, {3})
    with pytest.raises(Diverged, match=r"the gradient's norm is (inf|nan) at step 3"):
        run(config(place), tmp_path)


@pytest.mark.parametrize(
    ("instructions", "warned"), [({"avx2": True, "avx512_bf16": False}, True), ({"amx_bf16": True}, False)]
)
def test_bf16_without_instructions_for_it_is_warned_of(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    instructions: dict[str, bool],
    warned: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    run(config(place, precision="bf16"), tmp_path, (STOP,))
    assert ("fp32 is faster here" in caplog.text) is warned
