"""Masks of pruned weights: what pruning picks, against torch's own; what a mask's hash sees; what merges keep and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune as torch_prune

from pipelines.finetune.pruning import global_magnitude, layer_magnitude, wanda
from pipelines.soups import merge
from pipelines.soups.masks import MASK, counted, mask_hash, mask_of, one_mask, readers, record_mask
from pipelines.stage import UserError
from sweeps.soup_spec import parse_soup

SHAPES = {"a.weight": (8, 12), "b.weight": (5, 8), "c.weight": (1, 30)}


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def zeros(masks: dict[str, torch.Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_global_magnitude_is_torchs(sparsity: float) -> None:
    own = weights(0)
    layers = {name: torch.nn.Linear(shape[1], shape[0]) for name, shape in SHAPES.items()}
    for name, layer in layers.items():
        layer.weight.data.copy_(own[name])
    parameters = [(layer, "weight") for layer in layers.values()]
    torch_prune.global_unstructured(parameters, pruning_method=torch_prune.L1Unstructured, amount=sparsity)
    masks = global_magnitude(own, sparsity)
    for name, layer in layers.items():
        assert torch.equal(masks[name], layer.weight_mask.bool())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_layer_magnitude_is_torchs(sparsity: float) -> None:
    own = weights(1)
    masks = layer_magnitude(own, sparsity)
    for name, weight in own.items():
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data.copy_(weight)
        torch_prune.l1_unstructured(layer, "weight", amount=sparsity)
        assert torch.equal(masks[name], layer.weight_mask.bool())


def test_wanda_weighs_by_inputs() -> None:
    weight = {"a.weight": torch.tensor([[1.0, 2.0, 3.0, 4.0], [-4.0, 3.0, -2.0, 1.0]])}
    even = wanda(weight, {"a.weight": torch.ones(4)}, 0.5)["a.weight"]
    assert even.tolist() == [[False, False, True, True], [True, True, False, False]]
    first = wanda(weight, {"a.weight": torch.tensor([9.0, 1.0, 1.0, 1.0])}, 0.5)["a.weight"]
    assert first.tolist() == [[True, False, False, True], [True, True, False, False]]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 9999), sparsity=st.floats(0.0, 0.99), levels=st.sampled_from([1, 3, 1000]))
def test_as_many_go_as_were_asked_for(seed: int, sparsity: float, levels: int) -> None:
    """Equal scores too: with one level all are equal, with three most are."""
    own = {name: (weight * levels).round() / levels for name, weight in weights(seed).items()}
    total = sum(weight.numel() for weight in own.values())
    masks = global_magnitude(own, sparsity)
    assert zeros(masks) == round(sparsity * total)
    left = [weight.abs()[masks[name]] for name, weight in own.items()]
    gone = torch.cat([weight.abs()[~masks[name]] for name, weight in own.items()])
    if len(gone):
        assert float(torch.cat(left).min()) >= float(gone.max())
    for mask in layer_magnitude(own, sparsity).values():
        assert int((~mask).sum()) == round(sparsity * mask.numel())
    for mask in wanda(own, {name: torch.rand(shape[1]) for name, shape in SHAPES.items()}, sparsity).values():
        assert ((~mask).sum(1) == round(sparsity * mask.shape[1])).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 9999), goal=st.floats(0.1, 0.97), phases=st.integers(1, 5))
def test_phases_reach_the_goal_and_what_was_pruned_stays_pruned(seed: int, goal: float, phases: int) -> None:
    own = weights(seed)
    total = sum(weight.numel() for weight in own.values())
    before: dict[str, torch.Tensor] | None = None
    for phase in range(1, phases + 1):
        share = parse_soup({"method": "sparse", "sparsity": goal, "phases": phases}).share(phase)
        assert share == pytest.approx(1 - (1 - goal) ** (phase / phases))
        masks = global_magnitude(own, share)
        assert zeros(masks) == round(share * total)
        if before is not None:
            assert all(not (masks[name] & ~before[name]).any() for name in masks)
        own = {name: (weight + 0.1 * torch.randn_like(weight)) * masks[name] for name, weight in own.items()}
        before = masks
    assert share == goal


def model(folder: Path, seed: int, mask_seed: int, sparsity: float = 0.6) -> Path:
    """A model folder with its mask, and `config.json` enough for a merge."""
    folder.mkdir()
    masks = global_magnitude(weights(mask_seed), sparsity)
    state = {name: weight * masks[name] for name, weight in weights(seed).items()}
    save_file({**state, "embed.weight": torch.ones(3, 8)}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text("{}")
    record_mask(folder, counted(folder))
    return folder


def test_a_mask_is_its_zeros_wherever_they_lie(tmp_path: Path) -> None:
    one, two, other = model(tmp_path / "1", 1, 0), model(tmp_path / "2", 2, 0), model(tmp_path / "3", 3, 9)
    assert mask_hash(one) == mask_hash(two) != mask_hash(other)
    state = load_file(str(one / "model.safetensors"))
    assert mask_of(readers(dict(reversed(state.items())))).hash == mask_hash(one)
    assert mask_of(readers({**state, "embed.weight": torch.zeros(3, 8)})).hash == mask_hash(one)
    (one / MASK).unlink()
    assert mask_hash(one) == mask_hash(two)
    assert counted(two).sparsity == pytest.approx(0.6, abs=0.005)


def test_a_soup_of_one_mask_is_as_sparse(tmp_path: Path) -> None:
    folders = [model(tmp_path / str(seed), seed, 0) for seed in range(1, 4)]
    made = merge({"ingredients": [[str(folder), 1 / 3] for folder in folders], "out": str(tmp_path / "soup")})
    before = counted(folders[0])
    assert made["mask"] == before.hash == mask_hash(tmp_path / "soup") == counted(tmp_path / "soup").hash
    assert made["sparsity"] == {"before": before.sparsity, "after": before.sparsity}
    states = [load_file(str(folder / "model.safetensors")) for folder in folders]
    soup = load_file(str(tmp_path / "soup" / "model.safetensors"))
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, sum(state[name].double() for state in states).div(3).float())


def test_a_naive_mean_of_differently_masked_nets_loses_sparsity_and_is_refused_by_name(tmp_path: Path) -> None:
    folders = [model(tmp_path / str(seed), seed, mask_seed=seed) for seed in range(1, 4)]
    states = [load_file(str(folder / "model.safetensors")) for folder in folders]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    naive = mask_of(readers(mean)).sparsity
    assert counted(folders[0]).sparsity - naive > 0.3
    with pytest.raises(UserError, match="masks of pruned weights differ") as refused:
        merge({"ingredients": [[str(folder), 1 / 3] for folder in folders], "out": str(tmp_path / "soup")})
    assert all(f"{folder} ({mask_hash(folder)[:12]})" in str(refused.value) for folder in folders)
    assert not (tmp_path / "soup").exists()
    (folders[2] / MASK).unlink()
    with pytest.raises(UserError, match="masks of pruned weights differ"):
        one_mask(folders)


def test_a_dense_model_among_pruned_ones_is_named(tmp_path: Path) -> None:
    sparse, dense = model(tmp_path / "sparse", 1, 0), model(tmp_path / "dense", 2, 0, sparsity=0.0)
    (dense / MASK).unlink()
    with pytest.raises(UserError, match=r"dense \(dense\)"):
        one_mask([sparse, dense])
    assert one_mask([dense, dense]) is None
