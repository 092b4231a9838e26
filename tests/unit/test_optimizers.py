"""Every optimizer that a fine-tune may train with: one contract for all, and what each of them promises beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sft_runs import STOP, TOTAL, config, go_on, make_place, quick, run, same, weights

from pipelines.config import FineTuneConfig, SFTConfig
from pipelines.extras import needs
from pipelines.finetune.nadamw import NAdamW
from pipelines.finetune.optimizer_kinds import averaged, build_optimizer
from pipelines.finetune.optimizers import load_optimizer, save_optimizer
from pipelines.stage import UserError

LAST = f"checkpoint-{TOTAL}"
KINDS = get_args(FineTuneConfig.model_fields["optimizer"].annotation)
OWN: dict[str, dict[str, Any]] = {"prodigy": {"prodigy_d_coef": 2.0}, "adafactor": {"learning_rate": 0.02}}
"""Settings under which an optimizer descends in a few steps on the tiny model."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("optimizers"))


def settings_of(place: Path, kind: str, **changed: Any) -> dict[str, Any]:
    return config(place, optimizer=kind, **{**OWN.get(kind, {}), **changed})


@pytest.mark.parametrize("kind", quick(KINDS, "adamw", "schedule_free_adamw", "prodigy"))
class TestEveryOptimizer:
    def test_it_descends(self, place: Path, tmp_path: Path, kind: str) -> None:
        reports = run(settings_of(place, kind, adapter="none", max_steps=40, warmup_ratio=0.1), tmp_path, (1, 40))
        first, last = (report.scores[0].value for report in reports)
        assert last < first - 0.3
        before, after = weights(tmp_path / "checkpoint-1"), weights(tmp_path / "checkpoint-40")
        assert all(not torch.equal(before[name], after[name]) for name in before)

    @pytest.mark.parametrize("adapter", ["lora", "none"])
    def test_a_stopped_run_goes_on_bit_by_bit(self, place: Path, tmp_path: Path, kind: str, adapter: str) -> None:
        settings = settings_of(place, kind, adapter=adapter, max_grad_norm=0.5)
        whole = run(settings, tmp_path / "whole", (STOP, TOTAL))
        second = go_on(settings, tmp_path / "whole", STOP)
        assert same(tmp_path / "whole" / LAST, tmp_path / "second" / LAST)
        assert not same(tmp_path / "whole" / f"checkpoint-{STOP}", tmp_path / "second" / LAST)
        assert whole[-1].scores[0].record() == second[-1].scores[0].record()
        for name in ("train/loss", "train/grad_norm", "train/learning_rate"):
            assert whole[-1].telemetry[name] == second[-1].telemetry[name], name
        states = [json.loads((tmp_path / name / LAST / "state.json").read_text()) for name in ("whole", "second")]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        one, two = (load_file(tmp_path / name / LAST / "optimizer.safetensors") for name in ("whole", "second"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_milestones_do_not_change_a_run(self, place: Path, tmp_path: Path, kind: str) -> None:
        run(settings_of(place, kind), tmp_path / "one")
        run(settings_of(place, kind), tmp_path / "many", (1, 3, 5, TOTAL))
        assert same(tmp_path / "one" / LAST, tmp_path / "many" / LAST)

    def test_nothing_infinite_or_pickled_is_kept(self, place: Path, tmp_path: Path, kind: str) -> None:
        run(settings_of(place, kind), tmp_path)
        assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}

        def refuse(text: str) -> float:
            raise AssertionError(text)

        json.loads((tmp_path / LAST / "state.json").read_text(), parse_constant=refuse)


def sequence(
    rate: float, beta1: float, beta2: float, epsilon: float, decay: float, gradients: list[float]
) -> list[float]:
    """NAdamW on one number, from 1, by hand."""
    p, m, v, found = 1.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        p = p * (1 - rate * decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        ahead = (beta1 * m + (1 - beta1) * g) / (1 - beta1**t)
        p = p - rate * ahead / (math.sqrt(v / (1 - beta2**t)) + epsilon)
        found.append(p)
    return found


def steps(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, gradients: list[float]) -> list[float]:
    found = []
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        found.append(float(parameter.detach().flatten()[0]))
    return found


GRADIENTS = [0.3, -2.0, 0.01, 5.0, 0.0, 0.4, -0.4, 1e-3]


def test_nadamw_is_the_rule_by_hand() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    optimizer = NAdamW([parameter], lr=0.02, betas=(0.93, 0.99), eps=1e-6, weight_decay=0.1)
    wanted = sequence(0.02, 0.93, 0.99, 1e-6, 0.1, GRADIENTS)
    assert steps(optimizer, parameter, GRADIENTS) == pytest.approx(wanted, rel=1e-12)
    apart = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    torchs = torch.optim.NAdam([apart], lr=0.02, betas=(0.93, 0.99), eps=1e-6)
    assert steps(torchs, apart, GRADIENTS) != pytest.approx(sequence(0.02, 0.93, 0.99, 1e-6, 0, GRADIENTS), rel=1e-3)


def test_nadamw_without_momentum_is_adamw() -> None:
    ours, torchs = (torch.nn.Parameter(torch.ones(4, dtype=torch.float64)) for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.03, "betas": (0.0, 0.95), "eps": 1e-5, "weight_decay": 0.2}
    one, two = NAdamW([ours], **settings), torch.optim.AdamW([torchs], **settings)
    assert steps(one, ours, GRADIENTS) == pytest.approx(steps(two, torchs, GRADIENTS), rel=1e-12)


def test_nadamw_on_all_parameters_at_once_is_the_same() -> None:
    torch.manual_seed(0)
    start = [torch.randn(5, 4), torch.randn(7), torch.randn(())]
    apart, together = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    one, two = (NAdamW(p, lr=0.1, betas=(0.9, 0.99), weight_decay=0.1) for p in (apart, together))
    for _ in range(4):
        for p, q in zip(apart, together, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        one.step()
        with torch.no_grad():
            for q in together:
                state = two.state[q] or {"step": torch.zeros(()), "exp_avg": torch.zeros_like(q)}
                two.state[q] = {"exp_avg_sq": torch.zeros_like(q), **state}
                two.state[q]["step"] += 1
            two._update(together, two.param_groups[0])
    assert all(torch.equal(p, q) for p, q in zip(apart, together, strict=True))


def test_schedule_free_scores_and_keeps_the_average(place: Path, tmp_path: Path) -> None:
    settings = settings_of(place, "schedule_free_adamw", adapter="none", learning_rate=0.005)
    run(settings, tmp_path, (5, TOTAL))
    kept, state = weights(tmp_path / "checkpoint-5"), load_file(tmp_path / "checkpoint-5" / "optimizer.safetensors")
    name = "model.layers.0.mlp.gate_proj.weight"
    beta = 0.9
    ours = next(key for key in state if key.endswith(".y") and state[key].shape == kept[name].shape
                and torch.allclose(state[key], torch.lerp(kept[name], state[key[:-1] + "z"], 1 - beta), atol=1e-6))  # fmt: skip
    assert not torch.equal(state[ours], kept[name])


def test_the_model_holds_the_average_only_while_it_is_asked_for() -> None:
    model = torch.nn.Linear(3, 2)
    settings = SFTConfig.model_validate(
        {"base_model": "m", "datasets": {"train": {"path": "t", "type": "text"}}, "max_steps": 1,
         "optimizer": "schedule_free_adamw", "learning_rate": 0.1}
    )  # fmt: skip
    optimizer: Any = build_optimizer(settings, model, ["weight"], warmup_steps=0, device="cpu")
    optimizer.train()
    for _ in range(3):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    before = model.weight.detach().clone()

    def score() -> None:
        with averaged(optimizer):
            seen.append(model.weight.detach().clone())
            raise RuntimeError("on the way")

    seen: list[torch.Tensor] = []
    with pytest.raises(RuntimeError, match="on the way"):
        score()
    assert not torch.equal(seen[0], before)
    assert torch.equal(model.weight, before)
    assert all("y" not in state for state in optimizer.state.values())


def test_prodigys_estimate_goes_on(place: Path, tmp_path: Path) -> None:
    run(settings_of(place, "prodigy", warmup_ratio=0.0), tmp_path, (STOP, TOTAL))
    groups = json.loads((tmp_path / f"checkpoint-{STOP}" / "state.json").read_text())["param_groups"]
    later = json.loads((tmp_path / LAST / "state.json").read_text())["param_groups"]
    assert 1e-6 < groups[0]["d"] < later[0]["d"]
    with safe_open(tmp_path / LAST / "optimizer.safetensors", "pt") as file:
        assert "0.step" in json.loads(file.metadata()["numbers"])
        assert int(file.get_tensor("0.step")) == TOTAL


def test_eight_bits_are_eight_bits(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 128), torch.nn.Linear(128, 8))
    settings = SFTConfig.model_validate(
        {"base_model": "m", "datasets": {"train": {"path": "t", "type": "text"}}, "max_steps": 1,
         "optimizer": "adamw_8bit"}
    )  # fmt: skip
    decayed = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    kept = []
    for _ in range(2):
        optimizer = build_optimizer(settings, model, decayed, warmup_steps=0, device="cpu")
        if kept:
            load_optimizer(optimizer, tmp_path, kept[0])
        else:
            model(torch.tensor([1, 2, 3])).square().sum().backward()
            optimizer.step()
        kept.append(save_optimizer(optimizer, tmp_path))
        state = load_file(tmp_path / "optimizer.safetensors")
        by_size = {tensor.numel(): tensor.dtype for name, tensor in state.items() if name.endswith(".state1")}
        assert by_size == {
            6400: torch.float32,
            8192: torch.uint8,
            1024: torch.float32,
            128: torch.float32,
            8: torch.float32,
        }
    assert kept[0] == kept[1]


def test_a_missing_package_names_the_setting_and_the_line_that_installs_it() -> None:
    with pytest.raises(
        UserError, match=r"optimizer: adamw_8bit needs the package no-such-thing, .*stockpot\[bitsandbytes\]"
    ):
        needs("no_such_thing", "optimizer: adamw_8bit", extra="bitsandbytes")


SCALES = (0.01, 0.1, 1.0, 10.0)


def logistic_loss(scale: float, optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer]) -> float:
    """Training loss of a logistic regression on features times `scale`, after 100 steps from zero."""
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(256, 8, generator=draws, dtype=torch.float64)
    truth = features @ torch.randn(8, generator=draws, dtype=torch.float64)
    labels = (torch.rand(256, generator=draws, dtype=torch.float64) < torch.sigmoid(truth)).double()
    model = torch.nn.Linear(8, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    steps = optimizer(model)
    for _ in range(101):
        steps.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(scale * features)[:, 0], labels)
        loss.backward()
        steps.step()
    return float(loss.detach())


def test_prodigy_needs_no_tuning_where_sgd_does() -> None:
    """The paper's point (arXiv 2505.24005): one configuration for features of any scale."""
    settings = SFTConfig.model_validate(
        {"base_model": "m", "datasets": {"train": {"path": "t", "type": "text"}}, "max_steps": 1,
         "optimizer": "prodigy"}
    )  # fmt: skip

    def prodigy(model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(settings, model, ["weight"], warmup_steps=0, device="cpu")

    def sgd(rate: float) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
        return lambda model: torch.optim.SGD(model.parameters(), lr=rate)

    tuned = {s: {rate: logistic_loss(s, sgd(rate / s**2)) for rate in (1.0, 3.0, 10.0, 30.0)} for s in SCALES}
    best = {scale: min(losses.values()) for scale, losses in tuned.items()}
    assert all(logistic_loss(scale, prodigy) <= 1.05 * best[scale] for scale in SCALES)
    at_one = min(tuned[1.0], key=lambda rate: tuned[1.0][rate])
    fixed = [logistic_loss(scale, sgd(at_one)) / best[scale] for scale in SCALES]
    assert sum(ratio > 1.05 for ratio in fixed) >= 2
