"""What must hold before anything is averaged, and how alike changes are, against dense arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_nets import adapted, net, save_adapter, save_base
from peft import IA3Config, LoHaConfig, LoraConfig
from safetensors.torch import load_file, save_file

from pipelines.finetune.model import tokenizer_hash
from pipelines.soups.checks import base_problems, inspect
from pipelines.soups.cosines import delta_cosines, measure
from pipelines.soups.masks import mask_hash


def lora(rank: int = 3, **more: Any) -> LoraConfig:
    return LoraConfig(r=rank, target_modules=["a", "b"], **more)


def model(folder: Path, seed: int, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    torch.manual_seed(seed)
    state = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in net().state_dict().items()}
    save_file({**state, **tensors}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text("{}")
    return folder


def asked(folders: list[Path], **more: Any) -> dict[str, Any]:
    return inspect({"ingredients": [[f"run-{at}", str(folder)] for at, folder in enumerate(folders)], **more})


def test_equal_beginnings_have_no_problem(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    found = asked([save_adapter(tmp_path / str(at), base, at, lora(at + 1)) for at in range(3)])
    assert found["problems"] == []
    assert found["mask"] is None


def dense_changes(folders: list[Path]) -> torch.Tensor:
    plain = net().state_dict()
    rows = []
    for folder in folders:
        merged = adapted(folder).merge_and_unload().state_dict()
        rows.append(torch.cat([(merged[f"{n}.weight"] - plain[f"{n}.weight"]).flatten() for n in "ab"]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "configs",
    [
        [lora(2), lora(4, use_rslora=True), LoraConfig(r=3, target_modules=["a"])],
        [lora(2), lora(3, use_dora=True), LoHaConfig(r=2, target_modules=["b"])],
        [IA3Config(target_modules=["a", "b"], feedforward_modules=["b"])] * 2,
    ],
)
def test_cosines_of_adapters_are_those_of_dense_changes(tmp_path: Path, configs: list[Any]) -> None:
    base = save_base(tmp_path / "base")
    folders = [save_adapter(tmp_path / str(at), base, at, config) for at, config in enumerate(configs)]
    found = delta_cosines(folders)
    assert found is not None
    changes = dense_changes(folders)
    unit = changes / changes.norm(dim=1, keepdim=True)
    torch.testing.assert_close(torch.tensor(found["cosines"]).double(), unit @ unit.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found["norms"]).double(), changes.norm(dim=1), rtol=1e-6, atol=0)


def test_cosines_of_full_models_are_streamed(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    folders = [model(tmp_path / str(at), at) for at in range(2)]
    assert delta_cosines(folders) is None
    found = delta_cosines([*folders, base], str(base))
    assert found is not None
    plain = net().state_dict()
    changes = []
    for folder in folders:
        state = load_file(str(folder / "model.safetensors"))
        changes.append(torch.cat([(state[name] - plain[name]).flatten() for name in plain]))
    cosine = torch.nn.functional.cosine_similarity(*changes, dim=0)
    assert found["cosines"][0][1] == pytest.approx(float(cosine), abs=1e-12)
    assert found["cosines"][0][2] is None  # the base itself changed nothing
    assert found["norms"][2] == 0.0


def test_cosines_that_can_not_be_had_say_why(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    full = {f"run-{at}": str(model(tmp_path / str(at), at)) for at in range(2)}
    assert measure({"folders": full, "base": None, "cache": None}) == {"missing": "the base model is not known"}
    other = model(tmp_path / "other", 3, **{"a.weight": torch.zeros(3, 12)})
    found = measure({"folders": full, "base": str(other), "cache": str(tmp_path)})
    assert found == {"missing": f"a.weight has another shape in {other}: not the base model of all runs"}
    assert measure({"folders": full, "base": str(base), "cache": None})["runs"] == ["run-0", "run-1"]


def test_nan_is_named(tmp_path: Path) -> None:
    good = model(tmp_path / "good", 1)
    bad = model(tmp_path / "bad", 2, **{"a.weight": torch.full((8, 12), torch.nan, dtype=torch.float64)})
    [problem] = asked([good, bad])["problems"]
    assert problem == "run-1 holds NaN or infinite numbers in a.weight"


def test_adapters_and_full_models_do_not_mix(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    found = asked([save_adapter(tmp_path / "x", base, 1, lora()), model(tmp_path / "y", 2)])
    assert any("some runs are adapters" in problem for problem in found["problems"])


def test_a_checkpoints_own_record_of_its_base_counts(tmp_path: Path) -> None:
    folders = [model(tmp_path / str(at), at) for at in range(3)]
    for folder, base_hash in zip(folders, ("aaa", "bbb", "aaa"), strict=True):
        (folder / "state.json").write_text(json.dumps({"base_hash": base_hash, "tokenizer_hash": "t"}))
    found = asked(folders)
    assert found["problems"] == ["the runs do not have one base model: run-0, run-2 (aaa); run-1 (bbb)"]
    assert base_problems(["x", "y"], folders[::2], ["one", "two"], None) == []


def test_bases_that_can_not_be_compared_are_named(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    [problem] = base_problems(["x", "y"], folders, ["one.gguf", "two.gguf"], None)
    assert "x and y have" in problem
    assert "'one.gguf'" in problem
    assert "does not exist" in problem


def test_tokenizers_are_compared_by_what_they_say(tmp_path: Path) -> None:
    folders = [model(tmp_path / str(at), at) for at in range(2)]
    for folder in folders:
        (folder / "tokenizer.json").write_text('{"vocab": 1}')
        (folder / "tokenizer_config.json").write_text(json.dumps({"name_or_path": str(folder), "eos_token": "x"}))
    assert asked(folders)["problems"] == []
    assert tokenizer_hash(folders[0]) == tokenizer_hash(folders[1])
    (folders[1] / "chat_template.jinja").write_text("other")
    [problem] = asked(folders)["problems"]
    assert problem.startswith("the runs do not have one tokenizer: run-0 (")


def pruned(folder: Path, seed: int, mask_seed: int) -> Path:
    weight = net().state_dict()["a.weight"] + seed
    generator = torch.Generator().manual_seed(mask_seed)
    weight[torch.rand(weight.shape, generator=generator) < 0.5] = 0.0
    return model(folder, seed, **{"a.weight": weight})


def test_masks_are_compared_by_hash(tmp_path: Path) -> None:
    one, two = pruned(tmp_path / "one", 1, 0), pruned(tmp_path / "two", 2, 0)
    other, dense = pruned(tmp_path / "other", 3, 1), model(tmp_path / "dense", 4)
    assert mask_hash(one) == mask_hash(two) != mask_hash(other)
    assert mask_hash(dense) is None
    assert asked([one, two])["mask"] == mask_hash(one)
    for wrong in (other, dense):
        [problem] = asked([one, two, wrong])["problems"]
        assert problem.startswith("the runs do not have one mask of pruned weights: run-0, run-1 (")
        assert "run-2" in problem
    (other / "mask.json").write_text(json.dumps({"hash": mask_hash(one)}))
    assert asked([one, other])["problems"] == []
