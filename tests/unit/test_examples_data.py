"""The quickstart's data: what the generator writes is what is committed, and it says what it should."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"
KEYS = ["item", "qty", "city", "date", "priority"]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("examples_data_generate", DATA / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def read(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_committed_files_are_what_the_generator_writes(generator: ModuleType, tmp_path: Path) -> None:
    generator.generate(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in DATA.glob("*.jsonl")}
    assert {name.removesuffix(".jsonl") for name in written} == {*generator.SPLITS, "pairs"}


def test_another_seed_gives_other_orders(generator: ModuleType) -> None:
    assert generator.rows(5, seed=1) == generator.rows(5, seed=1)
    assert generator.rows(5, seed=1) != generator.rows(5, seed=2)


def test_splits_have_their_size_and_share_no_prompt(generator: ModuleType) -> None:
    prompts = {split: [row["prompt"] for row in read(split)] for split in generator.SPLITS}
    assert {split: len(rows) for split, rows in prompts.items()} == generator.SPLITS
    together = [prompt for rows in prompts.values() for prompt in rows]
    assert len(set(together)) == len(together)


@pytest.mark.parametrize("split", ["train", "tune", "select", "test"])
def test_answers_are_one_line_of_json_with_the_same_keys(split: str, generator: ModuleType) -> None:
    for row in read(split):
        answer = json.loads(row["completion"])
        assert list(answer) == KEYS
        assert row["completion"] == json.dumps(answer, separators=(",", ":"))
        assert answer["item"] in generator.ITEMS
        assert answer["city"] in row["prompt"]
        assert answer["priority"] in ("high", "normal", "low")
        assert len(row["prompt"]) <= generator.LONGEST


def test_no_answer_can_be_had_by_one_rule() -> None:
    rows = [(row["prompt"], json.loads(row["completion"])) for row in read("train")]
    digits = sum(str(answer["qty"]) in prompt.split() for prompt, answer in rows)
    iso = sum(answer["date"] in prompt for prompt, answer in rows)
    corrected = sum(any(word in prompt for word in ("make that", "sorry,", "I mean")) for prompt, _ in rows)
    for count in (digits, iso, corrected, sum(answer["priority"] == "normal" for _, answer in rows)):
        assert 0.05 * len(rows) < count < 0.7 * len(rows)


def test_dates_are_spelled_in_many_ways(generator: ModuleType) -> None:
    import random

    spelled = {generator.spell_date(random.Random(seed), 3, 2) for seed in range(60)}
    assert spelled == {"March 2", "March 2nd", "2 March", "the 2nd of March", "Mar 2", "2026-03-02"}
    assert [generator.ordinal(day) for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23)] == (
        "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 23rd".split()  # noqa: SIM905
    )
