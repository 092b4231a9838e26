"""Packed sequences and length groups: the plain way's loss and gradients, every row once an epoch, exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sft_runs import STOP, TOTAL, config, go_on, make_place, run, same
from tiny import tokenizer
from transformers import LlamaForCausalLM, MambaConfig, MambaForCausalLM

from pipelines.finetune.batches import build_items, collate, refuse_leaks
from pipelines.finetune.data import IGNORED, Encoded
from pipelines.finetune.packing import best_fit_decreasing, grouped_order, pack
from pipelines.finetune.rows import TrainRows
from pipelines.lm import trained_logits
from pipelines.stage import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("packing"))


def row(length: int, start: int = 0) -> Encoded:
    ids = [(start + 7 * place) % 250 for place in range(length)]
    return Encoded(ids, [IGNORED, *ids[1:]] if length % 2 else ids, cut=False)


def test_best_fit_leaves_the_least_room() -> None:
    assert best_fit_decreasing([5, 3, 2, 4], room=7) == [[0, 2], [3, 1]]
    assert best_fit_decreasing([7, 7], room=7) == [[0], [1]]
    assert best_fit_decreasing([], room=7) == []
    for bad in ([8], [0]):
        with pytest.raises(ValueError, match="must have 1 to 7 tokens"):
            best_fit_decreasing(bad, room=7)


def test_every_row_is_packed_once_and_fits() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, 5000).astype(np.int32)
    packs = pack(lengths, 64, seed=3)
    assert sorted(np.concatenate(packs).tolist()) == list(range(5000))
    sizes = [int(lengths[rows].sum()) for rows in packs]
    assert max(sizes) <= 64
    assert sum(sizes) / (64 * len(packs)) > 0.98
    assert [rows.tolist() for rows in pack(lengths, 64, seed=3)] == [rows.tolist() for rows in packs]
    assert [rows.tolist() for rows in pack(lengths, 64, seed=4)] != [rows.tolist() for rows in packs]


@pytest.mark.parametrize(("count", "batch"), [(1003, 4), (7, 8), (8, 8), (400, 1)])
def test_length_groups_hold_every_row_once_and_pad_less(count: int, batch: int) -> None:
    lengths = np.random.default_rng(1).integers(1, 500, count).astype(np.int32)
    order = grouped_order(lengths, batch, seed=0, epoch=2)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == grouped_order(lengths, batch, seed=0, epoch=2).tolist()
    if count > 500 and batch > 1:
        assert order.tolist() != grouped_order(lengths, batch, seed=0, epoch=3).tolist()

        def padded(rows: Any) -> int:
            return sum(
                int(lengths[rows[at : at + batch]].max()) * batch for at in range(0, count - count % batch, batch)
            )

        shuffled = np.random.default_rng(5).permutation(count)
        assert padded(order) < 1.05 * lengths.sum() < padded(shuffled)
        firsts = lengths[order[: count - count % batch : batch]]
        assert (np.diff(firsts) > 0).mean() > 0.3  # micro batches don't go from long to short


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_and_gradients_are_those_of_the_rows_apart(place: Path, attention: str) -> None:
    model = LlamaForCausalLM.from_pretrained(place / "model", attn_implementation=attention)
    rows = [row(length, start) for start, length in enumerate((9, 4, 1, 12, 2, 7, 3))]
    items = [[rows[0], rows[1], rows[2]], [rows[3]], [rows[4], rows[5]], [rows[6]]]
    found = {}
    for packed, given in (("packed", items), ("plain", [[one] for one in rows])):
        model.zero_grad()
        batch = collate(given, 0, packed=packed == "packed")
        logits, targets, _ = trained_logits(
            model, batch["input_ids"], batch["attention_mask"], batch["labels"], batch.get("position_ids")
        )
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        found[packed] = (len(targets), loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]))
    (n, loss, gradient), (plain_n, plain_loss, plain_gradient) = found["packed"], found["plain"]
    assert n == plain_n == sum(one.trained for one in rows)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert float((gradient - plain_gradient).norm() / plain_gradient.norm()) < 1e-5


def test_a_packed_row_does_not_see_the_row_before_it(place: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(place / "model").eval()

    def answers(before: Encoded) -> torch.Tensor:
        batch = collate([[before, row(6)]], 0, packed=True)
        with torch.no_grad():
            made = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        return made.logits[0, len(before.ids) :]

    assert torch.equal(answers(row(5, 1)), answers(row(5, 90)))


def test_a_packed_step_is_the_plain_step_on_the_same_rows(place: Path, tmp_path: Path) -> None:
    shared = {"lora_dropout": 0.0, "max_steps": 1, "adapter": "none"}
    plain = config(place, **shared, micro_batch_size=13, gradient_accumulation_steps=1)
    packed = config(place, **shared, micro_batch_size=2, gradient_accumulation_steps=9, sample_packing=True)
    [one] = run(plain, tmp_path / "plain", (1,))
    [two] = run(packed, tmp_path / "packed", (1,))
    for name in ("train/loss", "train/grad_norm"):
        assert two.telemetry[name] == pytest.approx(one.telemetry[name], rel=1e-5), name
    assert two.telemetry["cost/tokens"] == one.telemetry["cost/tokens"]
    assert two.telemetry["train/padding"] < one.telemetry["train/padding"]


@pytest.mark.parametrize(
    "changed",
    [
        {"sample_packing": True, "sequence_len": 24},
        {"group_by_length": True},
        {"sample_packing": True, "use_dora": True},
    ],
    ids=["packed", "grouped", "packed DoRA"],
)
def test_it_goes_on_bit_by_bit_in_the_middle_of_an_epoch(place: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    settings = config(place, **changed, gradient_accumulation_steps=1)
    whole = run(settings, tmp_path / "whole", (STOP, TOTAL))
    second = go_on(settings, tmp_path / "whole", STOP)
    assert same(tmp_path / "whole" / f"checkpoint-{TOTAL}", tmp_path / "second" / f"checkpoint-{TOTAL}")
    assert whole[-1].scores[0].record() == second[-1].scores[0].record()
    for name in ("train/loss", "train/grad_norm", "train/epoch", "train/padding", "cost/tokens"):
        assert whole[-1].telemetry[name] == second[-1].telemetry[name], name
    assert not float(whole[0].telemetry["train/epoch"]).is_integer()


def test_an_epoch_of_packed_sequences_holds_every_row() -> None:
    made = [row(length, place) for place, length in enumerate((9, 4, 12, 2, 7, 3, 30, 8))]
    rows = TrainRows(made, np.array([len(one.ids) for one in made], dtype=np.int32), 0, 0)
    items, sampler = build_items(rows, seed=1, batch=2, room=32, packed=True, grouped=False)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        held = [one.ids for place in orders[-1] for one in items[place]]
        assert sorted(held) == sorted(one.ids for one in made)
    assert len(items) == len(sampler) == 3


def test_a_model_whose_rows_would_leak_is_refused(place: Path, tmp_path: Path) -> None:
    tokens = tokenizer()
    model = MambaForCausalLM(MambaConfig(vocab_size=len(tokens), hidden_size=16, num_hidden_layers=1, state_size=4))
    rows = [row(12), row(9, 40)]
    with pytest.raises(UserError, match="sample_packing: in a packed sequence this model's rows would see each other"):
        refuse_leaks(model, rows, 0)
    assert model.training
    refuse_leaks(LlamaForCausalLM.from_pretrained(place / "model"), rows, 0)


def test_rows_of_a_batch_are_padded_with_nothing_that_counts() -> None:
    batch = collate([[row(3)], [row(5), row(2)]], 9, packed=True)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0], [1] * 7]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 0, 0], [0, 1, 2, 3, 4, 0, 1]]
    assert batch["labels"][0, 3:].tolist() == [IGNORED] * 4
    assert batch["labels"][1, 5] == IGNORED
