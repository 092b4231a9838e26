"""Preferences as rows: texts, chats, labels, in JSONL, CSV and Parquet; and what the door says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tokenizer, write_rows

from evaluators.base import Example
from pipelines.config import DataFile
from pipelines.data.base import BadRow
from pipelines.data.examples import build_row
from pipelines.finetune.data import IGNORED
from pipelines.finetune.pairs import encode_preferences
from pipelines.splits import read_rows

USER = {"role": "user", "content": "2+2?"}


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def built(values: dict[str, Any], kind: str = "preference", **settings: Any) -> Example:
    return build_row(values, DataFile(path="x.jsonl", type=kind, **settings)).example(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        {"chosen": [USER, said("4")], "rejected": [USER, said("5")]},
        {"prompt": "2+2?", "chosen": [USER, said("4")], "rejected": [USER, said("5")]},
        {"prompt": "2+2?", "chosen": [said("4")], "rejected": [said("5")]},
        {"prompt": [USER], "chosen": [said("4")], "rejected": [said("5")]},
        {"prompt": [USER], "chosen": [USER, said("4")], "rejected": [USER, said("5")]},
        {"prompt": [USER], "chosen": "4", "rejected": "5"},
    ],
)
def test_every_form_of_a_chat_pair_is_one_row(values: dict[str, Any]) -> None:
    row = built(values)
    assert (row.prompt, row.completion, row.rejected, row.label) == ((USER,), "4", "5", None)
    assert row.id == built({"prompt": [USER], "chosen": "4", "rejected": "5"}).id


def test_texts_stay_texts_whatever_they_look_like() -> None:
    row = built({"prompt": "list?", "chosen": "[1, 2]", "rejected": '[{"a": 1}]'})
    assert (row.prompt, row.completion, row.rejected) == ("list?", "[1, 2]", '[{"a": 1}]')
    assert row.id != built({"prompt": "list?", "chosen": "[1, 2]", "rejected": "[2]"}).id


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "has no key 'rejected'"),
        ({"chosen": "b", "rejected": "c"}, "has no key 'prompt'"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "'rejected' must be text with something in it"),
        ({"prompt": "a", "chosen": "b", "rejected": [said("c")]}, "must both be texts, or both lists of messages"),
        ({"chosen": [USER, said("4")], "rejected": [said("5")]}, "must be the same chat but for their last message"),
        ({"chosen": [USER, USER], "rejected": [USER, said("5")]}, "must be the same chat but for their last message"),
        ({"chosen": [USER, said("4")], "rejected": [USER, said("4")]}, "are the same"),
        ({"chosen": [USER, said(" ")], "rejected": [USER, said("4")]}, "is empty"),
    ],
)
def test_a_row_that_is_no_pair_is_a_bad_row(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        built(values)


@pytest.mark.parametrize("label", [True, 1, "true", "True", "1"])
def test_labels_are_read_in_every_form(label: Any) -> None:
    row = built({"prompt": "a", "completion": "b", "label": label}, "unpaired_preference")
    assert (row.completion, row.rejected, row.label) == ("b", None, True)


@pytest.mark.parametrize("label", [None, 2, "good", 0.5, [True]])
def test_what_is_no_label_is_a_bad_row(label: Any) -> None:
    with pytest.raises(BadRow, match="'label' must be true or false"):
        built({"prompt": "a", "completion": "b", "label": label}, "unpaired_preference")


def test_an_answer_with_a_label_may_be_a_chat() -> None:
    row = built({"prompt": [USER], "completion": [said("4")], "label": False}, "unpaired_preference")
    assert (row.prompt, row.completion, row.label) == ((USER,), "4", False)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    chats = [{"id": i, "chosen": [USER, said(f"{i}")], "rejected": [USER, said("none")]} for i in range(3)]
    texts = [{"id": i, "prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]
    for name, rows in (("chats", chats), ("texts", texts)):
        write_rows(tmp_path / f"{name}.jsonl", rows)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            cells = [{k: v if isinstance(v, int | str) else json.dumps(v) for k, v in row.items()} for row in rows]
            writer.writerows(cells)
        read = [
            read_rows(DataFile(path=str(tmp_path / f"{name}.{suffix}"), type="preference"))
            for suffix in ("jsonl", "parquet", "csv")
        ]
        assert read[0] == read[1] == read[2]
        assert len(read[0]) == 3


def test_the_answer_alone_counts_and_strangers_are_of_the_next_row() -> None:
    prompt = (USER, said("no"), USER)
    rows = [Example(str(i), str(i), prompt, f"good {i}", f"bad {i}") for i in range(2)]
    tokens = tokenizer()
    first, second = encode_preferences(rows, tokens, 256, strangers=True)
    answer = first.answers[0]
    shown = tokens.decode([token for token, label in zip(answer.ids, answer.labels, strict=True) if label != IGNORED])
    assert shown == "good 0<|im_end|>\n"
    assert (
        first.strangers[0].ids
        == encode_preferences([rows[0], rows[1]], tokens, 256, strangers=True)[0].strangers[0].ids
    )
    assert tokens.decode(first.strangers[1].ids).endswith("bad 1<|im_end|>\n")
    assert tokens.decode(second.strangers[0].ids).endswith("good 0<|im_end|>\n")
    assert first.good == (True, False)
