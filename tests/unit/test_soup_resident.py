"""Soups in memory: the running sum of full models, weights trained by gradient, and both through the real pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipelines.config import parse_pipeline
from pipelines.finetune.sft import SFTPipeline
from pipelines.soups import merge
from pipelines.soups.files import ModelFiles
from pipelines.soups.learned import learn
from pipelines.soups.mixtures import ModelMixture, group_of
from pipelines.soups.parts import finish_merge, merge_part, plan_merge
from pipelines.soups.resident import ResidentSum
from pipelines.stage import EvaluationJob, ModelSource


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resident")
    tiny.save_model(folder / "base")
    tiny.write_rows(folder / "rows.jsonl", tiny.sums(80))
    for number in range(4):
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        torch.manual_seed(number + 1)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value), alpha=0.02)
        model.save_pretrained(folder / f"full-{number}")
        tiny.tokenizer().save_pretrained(folder / f"full-{number}")
        model.to(torch.bfloat16).save_pretrained(folder / f"half-{number}")
        tiny.tokenizer().save_pretrained(folder / f"half-{number}")
    for number, (rank, targets) in enumerate([(4, ["q_proj"]), (2, ["q_proj", "down_proj"]), (3, ["v_proj"])]):
        torch.manual_seed(number + 10)
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        adapted = get_peft_model(base, LoraConfig(r=rank, lora_alpha=7, target_modules=targets, task_type="CAUSAL_LM"))
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(value, std=0.3)
        adapted.save_pretrained(str(folder / f"lora-{number}"))
    return folder


def config(root: Path, adapter: str = "lora") -> dict[str, Any]:
    datasets = {"train": {"path": str(root / "rows.jsonl"), "type": "prompt_completion"}, "select": {"fraction": 0.5}}
    typed = {"type": "sft", "base_model": str(root / "base"), "datasets": datasets, "max_steps": 3, "adapter": adapter}
    return parse_pipeline(typed).model_dump(mode="json")


def job(root: Path, source: ModelSource, adapter: str = "lora") -> EvaluationJob:
    return EvaluationJob(config(root, adapter), source, "select", ({"type": "loss"},))


@pytest.mark.parametrize("kind", ["full", "half"])
def test_a_trial_reads_its_new_ingredient_alone_and_equals_what_is_written(
    root: Path, tmp_path: Path, kind: str
) -> None:
    """A greedy walk: 0+1 refused, 0+2 taken, 0+2+3, back to 0+2+1. Tolerance: float32 sums, then one rounding."""
    folders = [str(root / f"{kind}-{number}") for number in range(4)]
    model = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    resident = ResidentSum(model)
    reads = []
    for walk in ([0, 1], [0, 2], [0, 2, 3], [0, 2, 1]):
        parts = [(folders[place], 1 / len(walk)) for place in walk]
        before = resident.reads
        resident.apply(parts)
        reads.append(resident.reads - before)
        merge({"ingredients": [list(part) for part in parts], "out": str(tmp_path / "soup")})
        written = load_file(tmp_path / "soup" / "model.safetensors")
        held = model.state_dict()
        for name, value in written.items():
            ulp = 2**-7 if kind == "half" else 1e-6
            torch.testing.assert_close(held[name], value.float(), rtol=ulp, atol=1e-8)
            same = (held[name] == value.float()).float().mean()
            assert same > (0.97 if kind == "half" else 0.3), f"{name}: {same:.3f} equal"
    assert reads == [2, 1, 1, 1]
    before = resident.reads
    first = [load_file(Path(folder) / "model.safetensors") for folder in folders]
    for alpha in (0.5, 0.25, 0.75):
        resident.apply([(folders[0], (1 - alpha) / 2), (folders[2], (1 - alpha) / 2), (folders[3], alpha)])
        for name, value in model.state_dict().items():
            expected = (1 - alpha) / 2 * (first[0][name].float() + first[2][name].float()) + alpha * first[3][
                name
            ].float()
            torch.testing.assert_close(value, expected, rtol=2**-7 if kind == "half" else 1e-5, atol=1e-6)
    resident.apply([(folders[place], 1 / 3) for place in (0, 2, 3)])
    assert resident.reads == before + 1, "a path and its trial read the new model once"
    resident.apply([(folders[0], 0.25), (folders[1], 0.75)])
    first, second = (load_file(Path(folder) / "model.safetensors") for folder in folders[:2])
    name = "model.layers.0.mlp.up_proj.weight"
    expected = 0.25 * first[name].float() + 0.75 * second[name].float()
    torch.testing.assert_close(model.state_dict()[name], expected, rtol=2**-7, atol=1e-6)


def test_the_pipeline_scores_a_blend_as_it_scores_what_was_written(root: Path, tmp_path: Path) -> None:
    pipeline = SFTPipeline()
    parts = tuple((str(root / f"lora-{number}"), 1 / 3) for number in range(3))
    (blended,) = pipeline.evaluate(job(root, ModelSource(str(root / "base"), blend=parts)))
    merge({"ingredients": [list(part) for part in parts], "out": str(tmp_path / "soup")})
    (written,) = pipeline.evaluate(job(root, ModelSource(str(root / "base"), str(tmp_path / "soup"))))
    assert blended.items is not None
    assert written.items is not None
    assert blended.items.tolist() == written.items.tolist(), "adapters: bit for bit"
    (plain,) = pipeline.evaluate(job(root, ModelSource(str(root / "base"))))
    assert plain.value != blended.value

    full = tuple((str(root / f"full-{number}"), 1 / 2) for number in range(2))
    (blended,) = pipeline.evaluate(job(root, ModelSource(str(root / "base"), blend=full), "none"))
    merge({"ingredients": [list(part) for part in full], "out": str(tmp_path / "full")})
    (written,) = pipeline.evaluate(job(root, ModelSource(str(tmp_path / "full")), "none"))
    assert blended.value == pytest.approx(written.value, rel=1e-6)
    (again,) = pipeline.evaluate(job(root, ModelSource(str(root / "base"))))
    assert again.value == plain.value, "the base model is the file's"


def test_groups() -> None:
    name = "model.layers.11.self_attn.q_proj"
    assert group_of(name, "model") == "all"
    assert group_of(name, "layer") == "layer.11"
    assert group_of(name, "tensor") == name
    assert group_of("model.embed_tokens.weight", "layer") == "rest"


SETTINGS = {"epochs": 3, "learning_rate": 0.1, "temperature": True, "patience": 3, "seed": 0}


@pytest.mark.parametrize("per", ["model", "layer", "tensor"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_learned_weights_lower_the_loss_and_are_what_is_merged(root: Path, tmp_path: Path, kind: str, per: str) -> None:
    adapter = "lora" if kind == "lora" else "none"
    folders = [str(root / f"{kind}-{number}") for number in range(3)]
    payload = {"config": config(root, adapter), "folders": folders, "split": "select"}
    learned = learn({**payload, "settings": {**SETTINGS, "per": per}})
    assert min(learned["losses"]) < learned["losses"][0]
    for weights in learned["coefficients"].values():
        assert sum(weights) == pytest.approx(1.0)
        assert min(weights) > 0
    counts = {"model": 1, "layer": 2 if kind == "lora" else 3}
    assert per == "tensor" or len(learned["coefficients"]) == counts[per]
    again = learn({**payload, "settings": {**SETTINGS, "per": per}})
    assert again == learned
    method = {"type": "learned", "per": per, "coefficients": learned["coefficients"]}
    ingredients = [[folder, 1 / 3] for folder in folders]
    merge({"ingredients": ingredients, "out": str(tmp_path / "soup"), "method": method, "cache": None})
    soup = str(tmp_path / "soup")
    source = ModelSource(str(root / "base"), soup) if kind == "lora" else ModelSource(soup)
    (score,) = SFTPipeline().evaluate(job(root, source, adapter))
    assert score.value == pytest.approx(min(learned["losses"]), rel=1e-4), "the weights that were trained are made"
    assert score.value < learned["losses"][0]


def test_full_models_are_mixed_without_holding_them(root: Path) -> None:
    """The gradient is that of Σ wᵢθᵢ over stacked models; nothing is kept for it."""
    folders = [root / f"half-{number}" for number in range(3)]
    model = AutoModelForCausalLM.from_pretrained(root / "full-0", dtype=torch.float32)
    mixture = ModelMixture(model, None, [ModelFiles(folder) for folder in folders], "tensor")
    assert set(mixture.groups) == {name for name, _ in model.named_parameters()}
    alpha = {name: torch.rand(3, requires_grad=True) for name in mixture.groups.values()}
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mixed = mixture.parameters(alpha)
    assert not kept
    loaded = [load_file(folder / "model.safetensors") for folder in folders]
    for name, value in mixed.items():
        weights = alpha[name].detach().clone().requires_grad_(True)
        expected = torch.einsum("k,k...->...", weights, torch.stack([one[name].float() for one in loaded]))
        torch.testing.assert_close(value, expected)
        (value**2).sum().backward()
        (expected**2).sum().backward()
        torch.testing.assert_close(alpha[name].grad, weights.grad, rtol=1e-4, atol=1e-5)


def test_learned_full_models_move_toward_the_base_and_are_merged_in_parts(root: Path, tmp_path: Path) -> None:
    columns = {"layer.0": [1.0, 0.0], "layer.1": [0.25, 0.75], "rest": [0.5, 0.5]}
    method = {"type": "learned", "per": "layer", "coefficients": columns}
    folders = [root / "full-0", root / "full-1"]
    payload = {"ingredients": [[str(f), 0.5] for f in folders], "method": method, "scale": 0.5}
    payload["base"] = str(root / "base")
    whole = merge({**payload, "out": str(tmp_path / "whole")})
    first, second, base, made = (
        load_file(f / "model.safetensors") for f in (*folders, root / "base", tmp_path / "whole")
    )
    for name, value in made.items():
        one, other = columns[group_of(name, "layer")]
        expected = base[name] + 0.5 * (one * first[name] + other * second[name] - base[name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    begun = plan_merge({**payload, "out": str(tmp_path / "parted"), "parts": 2})
    for part in range(begun["parts"]):
        merge_part({"plan": begun["plan"], "part": part})
    assert finish_merge({"plan": begun["plan"]}) == whole


def test_learned_weights_of_one_layer_are_that_layers(root: Path, tmp_path: Path) -> None:
    columns = {"layer.0": [1.0, 0.0], "layer.1": [0.25, 0.75]}
    method = {"type": "learned", "per": "layer", "coefficients": columns}
    folders = [root / "lora-0", root / "lora-1"]
    merge({"ingredients": [[str(f), 0.5] for f in folders], "out": str(tmp_path / "soup"), "method": method})
    deltas = [_deltas(folder) for folder in (*folders, tmp_path / "soup")]
    for name, value in deltas[2].items():
        weights = columns["layer.0" if ".0." in name else "layer.1"]
        expected = sum(weight * one[name] for weight, one in zip(weights, deltas[:2], strict=True) if name in one)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def _deltas(folder: Path) -> dict[str, torch.Tensor]:
    import json

    from pipelines.soups.factors import scaling

    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name in tensors:
        if ".lora_A." in name:
            layer = name.removeprefix("base_model.model.").partition(".lora_A")[0]
            _, scale = scaling(settings, layer)
            found[layer] = scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    return found
