"""Splits: what a row must be, where it goes, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny import write_rows

from pipelines.config import DataFile, Datasets, Fraction
from pipelines.splits import count_train, load_splits
from pipelines.stage import UserError


def rows(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(first, first + count)]


def file(tmp_path: Path, name: str, content: list[dict[str, object]], **more: object) -> DataFile:
    return DataFile(path=str(write_rows(tmp_path / name, content)), **{"type": "prompt_completion", **more})


def failure(datasets: Datasets) -> str:
    with pytest.raises(UserError) as caught:
        load_splits(datasets)
    return str(caught.value)


def test_splits_partition_the_prompts(tmp_path: Path) -> None:
    train = file(tmp_path, "train.jsonl", rows(1000))
    splits = load_splits(
        Datasets(train=train, tune=Fraction(fraction=0.1), select=Fraction(fraction=0.1), test=Fraction(fraction=0.2))
    )
    groups = [{e.group for e in getattr(splits, name)} for name in ("train", "tune", "select", "test")]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 1000
    assert [len(g) for g in groups] == pytest.approx([600, 100, 100, 200], abs=45)
    assert splits.warnings == ()
    assert count_train(Datasets(train=train, tune=Fraction(fraction=0.1))) == 1000 - len(splits.tune)


def test_a_rows_split_depends_on_its_prompt_alone(tmp_path: Path) -> None:
    def tune(content: list[dict[str, str]], name: str, **more: object) -> set[str]:
        datasets = Datasets(train=file(tmp_path, name, content), tune=Fraction(fraction=0.2), **more)
        return {str(e.prompt) for e in load_splits(datasets).tune}

    base = tune(rows(200), "a.jsonl")
    assert tune(rows(200)[::-1], "b.jsonl") == base
    assert base < tune(rows(400), "c.jsonl")
    assert tune(rows(200), "d.jsonl", select=Fraction(fraction=0.1), test=Fraction(fraction=0.3)) == base
    assert tune([{"prompt": f" {r['prompt']}\n", "completion": "other"} for r in rows(200)], "e.jsonl") == {
        f" {p}\n" for p in base
    }


def test_another_seed_gives_other_splits(tmp_path: Path) -> None:
    datasets = Datasets(train=file(tmp_path, "train.jsonl", rows(200)), tune=Fraction(fraction=0.2))
    assert {e.id for e in load_splits(datasets, 0).tune} != {e.id for e in load_splits(datasets, 1).tune}


def test_rows_of_one_prompt_stay_together(tmp_path: Path) -> None:
    content = [{"prompt": f"q {i % 40}", "completion": f"a {i}"} for i in range(400)]
    splits = load_splits(Datasets(train=file(tmp_path, "t.jsonl", content), tune=Fraction(fraction=0.3)))
    assert not {e.group for e in splits.train} & {e.group for e in splits.tune}


def test_group_by_keeps_rows_together_and_names_the_cluster(tmp_path: Path) -> None:
    content = [{**row, "doc": i % 20} for i, row in enumerate(rows(400))]
    splits = load_splits(
        Datasets(train=file(tmp_path, "t.jsonl", content, group_by="doc"), tune=Fraction(fraction=0.3))
    )
    held = {e.group for e in splits.tune}
    assert 0 < len(held) < 20
    assert not {e.group for e in splits.train} & held
    assert len(splits.train) + len(splits.tune) == 400


def test_ids_are_stable_and_never_repeat(tmp_path: Path) -> None:
    content = rows(10) + rows(10)
    splits = load_splits(
        Datasets(train=file(tmp_path, "t.jsonl", rows(60, 100)), tune=file(tmp_path, "u.jsonl", content))
    )
    ids = [e.id for e in splits.tune]
    assert len(set(ids)) == 20
    assert len({e.group for e in splits.tune}) == 10
    again = load_splits(
        Datasets(train=file(tmp_path, "t.jsonl", rows(60, 100)), tune=file(tmp_path, "v.jsonl", content[::-1]))
    )
    assert [e.id for e in again.tune] == ids


def test_held_out_rows_stand_in_hash_order(tmp_path: Path) -> None:
    splits = load_splits(Datasets(train=file(tmp_path, "t.jsonl", rows(500)), tune=Fraction(fraction=0.3)))
    assert [e.id for e in splits.tune] == sorted(e.id for e in splits.tune)
    numbers = [int(str(e.prompt).split()[1]) for e in splits.train]
    assert numbers == sorted(numbers)


def test_chat_and_text_rows(tmp_path: Path) -> None:
    chat = [
        {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "yo"}]}
        for i in range(60)
    ]
    splits = load_splits(
        Datasets(
            train=file(
                tmp_path, "text.jsonl", [{"body": f"text {i}"} for i in range(60)], type="text", field_text="body"
            ),
            tune=file(tmp_path, "chat.jsonl", chat, type="chat"),
        )
    )
    assert (splits.train[0].prompt, splits.train[0].completion) == (None, "text 0")
    assert splits.tune[0].completion == "yo"
    assert splits.tune[0].prompt is not None
    assert splits.tune[0].prompt[0]["role"] == "user"  # type: ignore[index]


def test_limit_takes_the_first_rows_of_the_file(tmp_path: Path) -> None:
    splits = load_splits(
        Datasets(train=file(tmp_path, "t.jsonl", rows(300), limit=70), tune=file(tmp_path, "u.jsonl", rows(60, 1000)))
    )
    assert [e.completion for e in splits.train] == [f"answer {i}" for i in range(70)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a"', "line 3: not JSON"),
        ("[1, 2]", "line 3: a list, but an object is wanted"),
        ('{"promt": "a", "completion": "b"}', "line 3: has no key 'prompt'; did you mean 'promt'?"),
        ('{"prompt": "a", "completion": 3}', "line 3: 'completion' must be text"),
        ('{"prompt": "a", "completion": "  "}', "line 3: 'completion' must be text with something in it"),
        ('{"prompt": "\\ud800", "completion": "b"}', "line 3: its text holds half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, told: str) -> None:
    path = write_rows(tmp_path / "train.jsonl", rows(2))
    path.write_text(path.read_text() + line + "\n", encoding="utf-8")
    message = failure(Datasets(train=DataFile(path=str(path), type="prompt_completion")))
    assert f"{path}, {told}" in message


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ("hello", "must be a list of messages"),
        ([{"role": "user", "content": "a"}], "must end with an assistant message"),
        ([{"role": "assistant", "content": "a"}], "after at least one other"),
        ([{"role": "user"}, {"role": "assistant", "content": "a"}], "message 0: 'content' must be text"),
        ([{"content": "x"}], "message 0 must be an object with 'role' and 'content'"),
    ],
)
def test_a_bad_chat_is_explained(tmp_path: Path, messages: object, told: str) -> None:
    message = failure(Datasets(train=file(tmp_path, "chat.jsonl", [{"messages": messages}], type="chat")))
    assert "line 1: " in message
    assert told in message


def test_all_bad_rows_are_counted(tmp_path: Path) -> None:
    message = failure(Datasets(train=file(tmp_path, "t.jsonl", [{"prompt": "x"}] * 12)))
    assert message.count("line ") == 5
    assert "... and 7 more" in message


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}\n')
    assert f"{path}, line 2: not UTF-8" in failure(Datasets(train=DataFile(path=str(path), type="prompt_completion")))


def test_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    body = "\n\n".join(json.dumps(row) for row in rows(100))
    path.write_bytes(b"\xef\xbb\xbf" + body.encode())
    assert count_train(Datasets(train=DataFile(path=str(path), type="prompt_completion"))) > 70


def test_missing_and_empty_files(tmp_path: Path) -> None:
    assert "can't be read (No such file" in failure(Datasets(train=DataFile(path=str(tmp_path / "no"), type="text")))
    (tmp_path / "none.jsonl").write_text("\n")
    assert "has no rows" in failure(Datasets(train=DataFile(path=str(tmp_path / "none.jsonl"), type="text")))


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    message = failure(Datasets(train=file(tmp_path, "t.jsonl", rows(3)), tune=Fraction(fraction=0.001)))
    assert "datasets.tune is empty" in message
    assert "raise the fraction" in message


def test_a_small_split_says_what_it_can_show(tmp_path: Path) -> None:
    splits = load_splits(
        Datasets(train=file(tmp_path, "t.jsonl", rows(60)), tune=file(tmp_path, "u.jsonl", rows(25, 100)))
    )
    [warning] = splits.warnings
    assert "tune has 25 prompts" in warning
    assert "±0.20" in warning


def test_a_prompt_in_two_files_names_both_lines(tmp_path: Path) -> None:
    datasets = Datasets(train=file(tmp_path, "t.jsonl", rows(80)), tune=file(tmp_path, "u.jsonl", rows(60, 79)))
    message = failure(datasets)
    assert "t.jsonl, line 80 (train): its prompt stands in" in message
    assert "u.jsonl, line 1 (tune) too; `on_duplicate: drop_train`" in message
    dropped = load_splits(datasets.model_copy(update={"on_duplicate": "drop_train"}))
    assert len(dropped.train) == 79
    assert "1 rows of train were dropped" in dropped.warnings[0]


def test_a_group_in_two_files_is_a_duplicate_too(tmp_path: Path) -> None:
    train = [{**row, "doc": 1} for row in rows(60)]
    tune = [{**row, "doc": 1} for row in rows(60, 100)]
    message = failure(
        Datasets(
            train=file(tmp_path, "t.jsonl", train, group_by="doc"), tune=file(tmp_path, "u.jsonl", tune, group_by="doc")
        )
    )
    assert "its group stands in" in message


def test_a_prompt_in_two_held_out_files_is_never_mended(tmp_path: Path) -> None:
    message = failure(
        Datasets(
            train=file(tmp_path, "t.jsonl", rows(80)),
            tune=file(tmp_path, "u.jsonl", rows(60, 100)),
            test=file(tmp_path, "v.jsonl", rows(60, 159)),
            on_duplicate="drop_train",
        )
    )
    assert "v.jsonl, line 1 (test): its prompt stands in" in message


def test_dropped_rows_are_gone_from_the_fractions(tmp_path: Path) -> None:
    datasets = Datasets(
        train=file(tmp_path, "t.jsonl", rows(400)),
        tune=Fraction(fraction=0.3),
        test=file(tmp_path, "v.jsonl", rows(100)),
        on_duplicate="drop_train",
    )
    splits = load_splits(datasets)
    assert not {e.group for e in splits.tune} & {e.group for e in splits.test}
    assert len(splits.train) + len(splits.tune) == 300


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    datasets = Datasets(train=file(tmp_path, "t.jsonl", rows(80)), tune=file(tmp_path, "u.jsonl", rows(60, 100)))
    first = load_splits(datasets)
    assert load_splits(datasets) is first
    path = write_rows(tmp_path / "t.jsonl", rows(90))
    os.utime(path, ns=(1, 1))
    assert len(load_splits(datasets).train) == 90
