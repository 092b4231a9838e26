"""Models of some of another's layers: their names, their layers, their shape, their weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from test_shape import folder
from tiny import save_model
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipelines.cuts import cut_name, kept_layers, split_cut
from pipelines.finetune.layers import listening
from pipelines.finetune.model import BaseModels, load_folder
from pipelines.finetune.shape import ShapeUnknown, read_shape
from pipelines.stage import UserError
from pipelines.weights import identity_of


@pytest.mark.parametrize("keep", [1, 4, (3,), (0, 9, 29)])
def test_a_name_says_what_it_keeps(keep: int | tuple[int, ...]) -> None:
    for source in ("package://some/model.gguf", "/a/folder", "owner/name"):
        named = cut_name(source, keep)
        assert split_cut(named) == (keep, source)
        assert cut_name(named, 2) == cut_name(source, 2)
        assert cut_name(named, None) == source
    assert split_cut("owner/name") == (None, "owner/name")


def test_layers_are_kept_at_even_distances_from_the_first_to_the_last() -> None:
    assert kept_layers(4, 30) == (0, 10, 19, 29)
    assert kept_layers(1, 5) == (0,)
    for layers in range(1, 41):
        for keep in range(2, layers + 1):
            kept = kept_layers(keep, layers)
            gaps = [b - a for a, b in itertools.pairwise(kept)]
            assert (len(kept), kept[0], kept[-1]) == (keep, 0, layers - 1)
            assert max(gaps) - min(gaps) <= 1
            assert min(gaps) >= 1
    with pytest.raises(UserError, match="5 layers are to be kept, but the model has 4"):
        kept_layers(5, 4)
    with pytest.raises(UserError, match="no layer 4: the model has 4, counted from 0 to 3"):
        kept_layers((0, 4), 4)


def test_a_cut_is_a_whole_model_of_its_layers(tmp_path: Path) -> None:
    source = save_model(tmp_path / "model", layers=4)
    models = BaseModels(str(tmp_path / "cache"))
    cut = models.load(f"layers://2/{source}")
    assert cut.folder.parent == tmp_path / "cache"
    assert cut.model.config.num_hidden_layers == 2
    whole = load_folder(source).model
    ids = torch.arange(6)[None]
    with torch.no_grad():
        with listening(whole, [0]) as first:
            whole(input_ids=ids)
        with listening(cut.model, [0, 1]) as heard:
            given = cut.model(input_ids=ids).logits
        assert torch.equal(first[0], heard[0])
        positions = whole.model.rotary_emb(first[0], torch.arange(6)[None])
        last = whole.model.layers[3](first[0], position_embeddings=positions)
        by_hand = whole.lm_head(whole.model.norm(last[0] if isinstance(last, tuple) else last))
    assert torch.allclose(given, by_hand, atol=1e-5)
    assert models.load(f"layers://0,3/{source}").model.state_dict().keys() == cut.model.state_dict().keys()
    names = {identity_of(name).model for name in (str(source), f"layers://2/{source}", f"layers://3/{source}")}
    assert len(names) == 3


def test_the_second_worker_of_a_trial_writes_whole_models_too(tmp_path: Path) -> None:
    """In a process group Transformers writes nothing on it; the group is one that talks to nobody."""
    source = save_model(tmp_path / "model", layers=4)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        found = BaseModels(str(tmp_path / "cache")).load(f"layers://2/{source}")
    finally:
        torch.distributed.destroy_process_group()
    assert found.model.config.num_hidden_layers == 2
    assert sorted(file.name for file in found.folder.glob("*.safetensors")) == ["model.safetensors"]


def test_lists_of_the_configuration_with_an_entry_a_layer_are_cut_too(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from pipelines.finetune.layers import cut

    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    made = Qwen2Config(**sizes, num_key_value_heads=2, num_hidden_layers=3, layer_types=kinds, sliding_window=4)
    model = Qwen2ForCausalLM(made)
    cut(model, (1, 2))
    assert model.config.num_hidden_layers == 2
    assert list(model.config.layer_types) == kinds[1:]
    model.save_pretrained(tmp_path)
    assert len(Qwen2ForCausalLM.from_pretrained(tmp_path).model.layers) == 2


def test_the_shape_of_a_cut_is_read_from_the_whole(tmp_path: Path) -> None:
    source = save_model(tmp_path / "model", layers=4)
    whole, cut = read_shape(str(source)), read_shape(f"layers://0,3/{source}")
    models = BaseModels(str(tmp_path / "cache"))
    assert cut.tensors == read_shape(str(models.load(f"layers://0,3/{source}").folder)).tensors
    assert (cut.layers, cut.hidden) == (2, whole.hidden)
    with pytest.raises(ShapeUnknown, match="5 layers are to be kept, but the model has 1"):
        read_shape(f"layers://5/{folder(tmp_path / 'one')}")
