"""Repeats and near-duplicates, against brute force."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest

from evaluators.base import Example
from pipelines.duplicates import SIMILAR, find_duplicates, jaccard, shingles


def example(name: str, prompt: str, completion: str = "x") -> Example:
    return Example(name, name, prompt, completion)


def runs(text: str) -> set[str]:
    return {text[at : at + 5] for at in range(len(text) - 4)}


def test_similarity_is_that_of_runs_of_five_characters() -> None:
    left, right = "the quick brown fox jumps", "the quick brown dog jumps"
    exact = len(runs(left) & runs(right)) / len(runs(left) | runs(right))
    assert jaccard(shingles(left), shingles(right)) == pytest.approx(exact)
    assert 0 < exact < 1


def test_case_marks_and_blanks_make_no_difference() -> None:
    assert np.array_equal(shingles("How many?\n  Say it!"), shingles("how many say IT"))


@pytest.mark.parametrize("text", ["", "ab", "?!", "人工智能正在改变世界", "a" * 4000])
def test_any_text_has_runs(text: str) -> None:
    assert jaccard(shingles(text), shingles(text)) == 1.0


def varied(seed: int) -> dict[str, list[Example]]:
    """Rows of which some are others with a few characters changed."""
    draw = random.Random(seed)
    base = ["".join(draw.choices(string.ascii_lowercase + " ", k=draw.randint(30, 200))) for _ in range(60)]
    splits: dict[str, list[Example]] = {"train": [], "tune": [], "select": [], "test": []}
    for number in range(200):
        text = list(draw.choice(base))
        for _ in range(draw.randint(0, 6)):
            text[draw.randrange(len(text))] = draw.choice(string.ascii_lowercase)
        splits[draw.choice(list(splits))].append(example(f"{number:04d}", "".join(text)))
    return splits


@pytest.mark.parametrize("seed", range(3))
def test_everything_similar_is_found_and_nothing_else(seed: int) -> None:
    splits = varied(seed)
    names = ["train", "tune", "select", "test"]
    sets = {row.id: shingles(row.prompt) for rows in splits.values() for row in rows}
    expected, clear = set(), set()
    for at, other in enumerate(names):
        for held in names[at + 1 :]:
            for row in splits[held]:
                best = max(jaccard(sets[row.id], sets[one.id]) for one in splits[other])
                if best >= SIMILAR:
                    expected.add((held, row.id, other))
                if best >= 0.9:
                    clear.add((held, row.id, other))
    found = {(near.split, near.row, near.other_split) for near in find_duplicates(splits).near}
    assert found <= expected
    assert clear <= found
    assert len(expected) > 30
    assert len(found) >= 0.98 * len(expected)


def test_repeats_within_train_and_progress() -> None:
    train = [example("a", "one"), example("a-2", "one"), example("b", "two"), example("a-3", "one")]
    rows = {"train": train * 500, "test": [example("t", "an entirely different question")]}
    told: list[tuple[int, int]] = []
    found = find_duplicates(rows, lambda done, total: told.append((done, total)))
    assert (len(found.repeated), found.near, found.compared) == (1000, (), 2001)
    assert told == [(1000, 2001), (2000, 2001)]


def test_chat_and_plain_text_rows() -> None:
    chat = ({"role": "user", "content": "What is the capital of France, please?"},)
    rows = {
        "train": [Example("c", "c", chat, "Paris"), Example("p", "p", None, "A long story about a lighthouse keeper.")],
        "test": [
            Example("d", "d", ({"role": "user", "content": "What is the capital of france please"},), "Paris"),
            Example("q", "q", None, "a long story about a lighthouse keeper"),
        ],
    }
    assert {(near.row, near.other_row) for near in find_duplicates(rows).near} == {("d", "c"), ("q", "p")}


def test_one_template_ends_in_time() -> None:
    train = [
        example(f"t{i}", f"Translate this word into French, and answer with one word only: {i:06d}") for i in range(900)
    ]
    test = [
        example(f"h{i}", f"Translate this word into French, and answer with one word only: {i:06d}x")
        for i in range(300)
    ]
    assert len(find_duplicates({"train": train, "test": test}).near) == 300
