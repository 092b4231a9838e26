"""Averages of full models: accumulation, ties, shards, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.soups import merge
from pipelines.soups.arithmetic import merge_models
from pipelines.soups.methods.average import average
from pipelines.stage import UserError

CONFIG = {"model_type": "llama", "rope_theta": 1e4, "tie_word_embeddings": True}


def write(folder: Path, seed: int, dtype: torch.dtype = torch.float32, **extra: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "model.embed_tokens.weight": torch.randn(7, 5, generator=generator).to(dtype),
        "model.norm.weight": torch.randn(5, generator=generator).to(dtype),
        "model.steps": torch.arange(3),
        **{name.replace("__", "."): tensor for name, tensor in extra.items()},
    }
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "_name_or_path": str(folder)}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "state.json").write_text("{}")
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "model.safetensors"))


def test_weighted_mean_with_configs(tmp_path: Path) -> None:
    a, b, soup = write(tmp_path / "a", 0), write(tmp_path / "b", 1), tmp_path / "soup"
    result = merge({"ingredients": [[str(a), 0.25], [str(b), 0.75]], "out": str(soup)})
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        expected = 0.25 * read(a)[name].double() + 0.75 * read(b)[name].double()
        torch.testing.assert_close(read(soup)[name].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(read(soup)["model.steps"], torch.arange(3))
    assert {path.name for path in soup.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert result["kind"] == "full"
    assert merge_models([(a, 0.25), (b, 0.75)], soup) == result


def test_one_ingredient_is_itself_and_equal_ones_too(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 0, torch.bfloat16)
    merge_models([(a, 1.0)], tmp_path / "one")
    merge_models([(a, 1 / 3)] * 3, tmp_path / "three")
    for folder in ("one", "three"):
        assert all(torch.equal(read(tmp_path / folder)[name], tensor) for name, tensor in read(a).items())


def test_accumulates_in_float32_and_rounds_once() -> None:
    tensors = [torch.randn(1000, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in range(16)]
    exact = torch.stack([tensor.double() for tensor in tensors]).mean(0)
    assert torch.equal(average(tensors, [1 / 16] * 16).bfloat16(), exact.bfloat16())
    running = tensors[0]
    for count, tensor in enumerate(tensors[1:], start=1):
        running = (running * (count / (count + 1)) + tensor / (count + 1)).bfloat16()
    assert not torch.equal(running, exact.bfloat16())


def test_float64_stays_float64() -> None:
    tensors = [torch.tensor([1 / 3], dtype=torch.float64), torch.tensor([1 / 7], dtype=torch.float64)]
    assert average(tensors, [0.5, 0.5]).item() == pytest.approx(5 / 21, abs=1e-16)


def test_a_tied_head_stored_by_some_is_left_out(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    c = write(tmp_path / "c", 1, lm_head__weight=read(b)["model.embed_tokens.weight"].clone())
    merge_models([(a, 0.5), (c, 0.5)], tmp_path / "soup")
    assert set(read(tmp_path / "soup")) == set(read(a))
    merge_models([(c, 0.5), (c, 0.5)], tmp_path / "soup")
    assert set(read(tmp_path / "soup")) == set(read(a))
    d = write(tmp_path / "d", 1, lm_head__weight=torch.ones(7, 5))
    with pytest.raises(UserError, match=r"d says tie_word_embeddings, but its lm_head\.weight is not its model\.embed"):
        merge_models([(a, 0.5), (d, 0.5)], tmp_path / "soup")


def test_reads_shards(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    merge_models([(a, 0.5), (b, 0.5)], tmp_path / "whole")
    tensors = read(b)
    (b / "model.safetensors").unlink()
    where = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        where[name] = f"model-{index}.safetensors"
        save_file({name: tensor}, str(b / where[name]))
    (b / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    merge_models([(a, 0.5), (b, 0.5)], tmp_path / "sharded")
    assert all(torch.equal(read(tmp_path / "sharded")[k], v) for k, v in read(tmp_path / "whole").items())


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"model__norm__weight": torch.ones(6)}, r"model\.norm\.weight is"),
        ({"model__norm__weight": torch.ones(5).half()}, "F16"),
        ({"model__more__weight": torch.ones(2)}, r"a lacks model\.more\.weight"),
        ({"model__norm__weight": torch.full((5,), torch.nan)}, r"b holds NaN .* model\.norm\.weight"),
        ({"model__steps": torch.arange(3) + 1}, "whole numbers that differ"),
    ],
)
def test_refuses_what_differs(tmp_path: Path, extra: dict[str, torch.Tensor], words: str) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1, **extra)
    with pytest.raises(UserError, match=words):
        merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_refuses_other_configs_weights_and_missing_files(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    with pytest.raises(UserError, match="sum to 1"):
        merge_models([(a, 0.5), (b, 0.6)], tmp_path / "soup")
    (b / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 5e5}))
    with pytest.raises(UserError, match="differ in rope_theta"):
        merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    (b / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"b has no model\.safetensors"):
        merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")
