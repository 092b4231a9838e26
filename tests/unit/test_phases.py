"""Phased data: one file of train after another, the same rows as when they are stacked, going on bit by bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sft_runs import config, go_on, run, same
from sweep_files import SFT, load, problems
from tiny import save_model, sums, write_rows

from pipelines.config import SFTConfig
from pipelines.finetune import objective
from pipelines.finetune.packing import fed, phased_orders
from pipelines.finetune.rows import TrainRows

PHASES = np.array([0] * 7 + [1] * 4 + [2] * 9, dtype=np.int32)


@pytest.mark.parametrize("epochs", [1, 3])
def test_over_whole_epochs_the_rows_are_those_of_stacked(epochs: int) -> None:
    orders = phased_orders(PHASES, epochs * 20, seed=3)
    assert orders.shape == (epochs, 20)
    flat = orders.ravel()
    assert Counter(flat.tolist()) == dict.fromkeys(range(20), epochs)
    assert PHASES[flat].tolist() == sorted(PHASES.tolist() * epochs)
    assert flat[: 7 * epochs].tolist() != sorted(flat[: 7 * epochs].tolist())
    if epochs > 1:
        assert flat[:7].tolist() != flat[7:14].tolist()


def test_of_a_part_of_an_epoch_every_phase_has_its_part() -> None:
    orders = phased_orders(PHASES, 30, seed=0)
    seen = PHASES[orders.ravel()[:30]]
    assert seen.tolist() == sorted(seen.tolist())
    assert Counter(seen.tolist()) == {0: 7 + 4, 1: 4 + 2, 2: 9 + 4}  # of 10 more rows 3.5, 2 and 4.5
    assert sorted(orders.ravel().tolist()) == sorted([*range(20)] * 2)


def test_what_a_run_is_fed() -> None:
    assert fed(20, 4, 5) == 20
    assert fed(20, 8, 3) == 20  # 8, 8, 4
    assert fed(20, 8, 4) == 28
    assert fed(20, 64, 2) == 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    save_model(folder / "model")
    (folder / "train").mkdir()
    write_rows(folder / "train" / "00-easy.jsonl", sums(8))
    write_rows(folder / "train" / "05-hard.jsonl", sums(5, 50))
    write_rows(folder / "tune.jsonl", sums(4, 1000))
    return folder


def settings(place: Path, strategy: str, **changed: Any) -> dict[str, Any]:
    made = config(place, micro_batch_size=2, gradient_accumulation_steps=1, max_steps=14, **changed)
    train = {"path": str(place / "train"), "type": "prompt_completion"}
    return {**made, "datasets": {**made["datasets"], "train": train, "strategy": strategy}}


def fed_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Token ids of every row that is fed from here on."""
    found: list[tuple[int, ...]] = []
    collate = objective.collate

    def watched(items: Any, *words: Any, **more: Any) -> Any:
        found.extend(tuple(row.ids) for item in items for row in item)
        return collate(items, *words, **more)

    monkeypatch.setattr(objective, "collate", watched)
    return found


def test_stacked_and_phased_see_the_same_rows(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    for strategy in ("stacked", "phased"):
        with monkeypatch.context() as patch:
            rows = fed_rows(patch)
            run(settings(place, strategy), tmp_path / strategy, (14,))  # two epochs of 13 rows, 7 steps each
            seen[strategy] = list(rows)
    assert Counter(seen["stacked"]) == Counter(seen["phased"])
    assert set(Counter(seen["phased"]).values()) == {2}
    easy = set(seen["phased"][:16])
    assert len(easy) == 8
    assert not easy & set(seen["phased"][16:])
    assert easy & set(seen["stacked"][16:])


@pytest.mark.parametrize("stop", [7, 8, 11], ids=["before", "at", "after"])
def test_it_goes_on_bit_by_bit_across_the_end_of_a_phase(place: Path, tmp_path: Path, stop: int) -> None:
    """The first file's 16 rows end at step 8: an epoch's last step has one row, so after 15 rows 7 steps are done."""
    made = settings(place, "phased")
    run(made, tmp_path / "whole", (stop, 14))
    go_on(made, tmp_path / "whole", stop, 14)
    assert same(tmp_path / "whole" / "checkpoint-14", tmp_path / "second" / "checkpoint-14")


def test_a_packed_sequence_holds_rows_of_one_phase() -> None:
    rows = TrainRows([], np.full(20, 3, dtype=np.int32), 0, 0, PHASES)
    from pipelines.finetune.batches import _packs

    packs, phases = _packs(rows, 8, seed=1)
    assert phases is not None
    assert sorted(np.concatenate(packs).tolist()) == list(range(20))
    assert all(set(PHASES[own].tolist()) == {int(phase)} for own, phase in zip(packs, phases, strict=True))


def test_the_strategy_may_be_swept_and_length_groups_may_not_stand_beside_it(tmp_path: Path) -> None:
    loaded = load(tmp_path, SFT + "parameters: {datasets.strategy: [stacked, phased]}\n")
    assert [loaded.resolve(p)["datasets"]["strategy"] for p in map(loaded.space.replay, loaded.space.grid())] == [
        "stacked",
        "phased",
    ]
    found = problems(
        tmp_path,
        SFT.replace("  max_steps", "  group_by_length: true\n  max_steps")
        + "parameters: {datasets.strategy: [phased]}\n",
    )
    assert any("groups rows of all files" in said for said in found.values())


def test_one_file_in_phases_is_told(place: Path) -> None:
    from pipelines.splits import load_splits

    made = settings(place, "phased")
    data = made["datasets"] | {"train": {"path": str(place / "train" / "00-easy.jsonl"), "type": "prompt_completion"}}
    datasets = SFTConfig.model_validate({**made, "datasets": data}).datasets
    assert any("train is one file" in warning for warning in load_splits(datasets).warnings)
