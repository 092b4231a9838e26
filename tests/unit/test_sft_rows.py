"""Rows that are encoded on access: the same rows, the same order, the same weights as rows held in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sft_runs import TOTAL, config, make_place, run, same
from tiny import tokenizer

from evaluators.base import Example
from pipelines.finetune import pipeline
from pipelines.finetune import rows as module
from pipelines.finetune.rows import LazyRows, encode_train
from pipelines.stage import UserError


class OnDisk(Sequence[Example]):
    """Examples that are made when they are asked for, as rows of a file are."""

    def __init__(self, held: Sequence[Example]) -> None:
        self.held = held
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, place: Any) -> Any:
        self.read.append(place)
        return self.held[place]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.held)


def examples(count: int) -> list[Example]:
    return [Example(id=f"{i}", group=f"{i}", prompt="p" * (i % 9), completion="c" * (1 + i % 4)) for i in range(count)]


def test_lazy_rows_are_the_rows_in_memory() -> None:
    tokens, made = tokenizer(), examples(40)
    held, lazy = encode_train(made, tokens, 8), encode_train(OnDisk(made), tokens, 8)
    assert isinstance(lazy.rows, LazyRows)
    assert 0 < held.dropped == lazy.dropped
    assert 0 < held.cut == lazy.cut
    assert list(held.rows) == list(lazy.rows) == lazy.rows[:]
    assert held.lengths.tolist() == lazy.lengths.tolist() == [len(row.ids) for row in held.rows]


def test_few_rows_stay_in_memory() -> None:
    source = OnDisk(examples(1000))
    made = encode_train(source, tokenizer(), 64).rows
    assert isinstance(made, LazyRows)
    for place in [*range(len(made)), 0, len(made) - 1]:
        made[place]
    assert len(made._recent) == module.KEPT
    assert source.read == [*range(1000), 0]  # the last row was kept, the first one had to be read again


def test_a_long_first_pass_says_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TELL_SECONDS", -1.0)
    with caplog.at_level(logging.WARNING):
        encode_train(OnDisk(examples(3)), tokenizer(), 64)
    assert "2 of 3 rows of train measured" in caplog.text


def test_lazy_rows_with_nothing_to_train_on_are_the_users() -> None:
    with pytest.raises(UserError, match="leave nothing to train on in any of the 2 rows"):
        encode_train(OnDisk([replace(one, prompt="p" * 20) for one in examples(2)]), tokenizer(), 8)


@pytest.mark.parametrize("changed", [{}, {"sample_packing": True}, {"group_by_length": True}], ids=str)
def test_training_on_lazy_rows_is_bit_by_bit_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    settings = config(make_place(tmp_path), **changed, sequence_len=10)
    run(settings, tmp_path / "held")
    load = pipeline.load_splits

    def lazily(*words: Any) -> Any:
        splits = load(*words)
        return replace(splits, train=OnDisk(splits.train))

    monkeypatch.setattr(pipeline, "load_splits", lazily)
    run(settings, tmp_path / "lazy")
    assert same(tmp_path / "held" / f"checkpoint-{TOTAL}", tmp_path / "lazy" / f"checkpoint-{TOTAL}")
