"""Every format gives the rows that JSONL gives: the same ids, groups and splits; and says what is wrong with a file."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from pipelines.config import DataFile, Datasets, Fraction
from pipelines.data import READERS
from pipelines.data.files import SUFFIXES, find_files, format_of
from pipelines.splits import Splits, load_splits, read_rows
from pipelines.stage import UserError

ROWS: list[dict[str, Any]] = [
    {
        "question, or so": f'What is "{i}",\nand why; then?' if i % 3 else f"plain {i}",
        "réponse": f"answer {i % 90}\t— ünïcode 🙂" if i % 2 else f"line one\r\nline two {i}",
        "doc": i % 23,
        "a.b": i,
    }
    for i in range(240)
] + [{"question, or so": "plain 0", "réponse": "line one\r\nline two 0", "doc": 0, "a.b": 7}]
CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "be, brief"},
            {"role": "user", "content": f'say "{i}"\n'},
            {"role": "assistant", "content": f"it is {i}"},
        ],
        "doc": i % 41,
    }
    for i in range(120)
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",", encoding: str = "utf-8") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    write_csv(path, rows, "\t")


def write_semicolons(path: Path, rows: list[dict[str, Any]]) -> None:
    write_csv(path, rows, ";", "utf-8-sig")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


def write_arrow_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


def write_feather(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), str(path), compression="uncompressed")


def write_packed_feather(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), str(path), compression="zstd")


def packed(write: Callable[[Path, list[dict[str, Any]]], None]) -> Callable[[Path, list[dict[str, Any]]], None]:
    def write_packed(path: Path, rows: list[dict[str, Any]]) -> None:
        plain = path.with_suffix(".plain")
        write(plain, rows)
        path.write_bytes(gzip.compress(plain.read_bytes()))

    return write_packed


WRITERS: dict[str, tuple[str, Callable[[Path, list[dict[str, Any]]], None]]] = {
    "jsonl": (".jsonl", write_jsonl),
    "json array": (".json", write_json),
    "csv": (".csv", write_csv),
    "tsv": (".tsv", write_tsv),
    "csv of Excel in Europe": (".csv", write_semicolons),
    "parquet": (".parquet", write_parquet),
    "arrow file": (".arrow", write_arrow),
    "arrow stream": (".arrow", write_arrow_stream),
    "feather": (".feather", write_feather),
    "packed feather": (".feather", write_packed_feather),
    "packed jsonl": (".jsonl.gz", packed(write_jsonl)),
    "packed csv": (".csv.gz", packed(write_csv)),
}
STREAMED = [name for name in WRITERS if "packed" not in name and name != "json array"]
PROMPTS = {"type": "prompt_completion", "field_prompt": "question, or so", "field_completion": "réponse"}
TYPES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "prompts": (ROWS, PROMPTS),
    "prompts by document": (ROWS, {**PROMPTS, "group_by": "doc"}),
    "prompts by an odd name": (ROWS, {**PROMPTS, "group_by": "a.b", "limit": 200}),
    "texts": (ROWS, {"type": "text", "field_text": "réponse"}),
    "texts by document": (ROWS, {"type": "text", "field_text": "réponse", "group_by": "doc"}),
    "chats": (CHATS, {"type": "chat"}),
    "chats by document": (CHATS, {"type": "chat", "group_by": "doc"}),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def datasets(data: DataFile, **more: Any) -> Datasets:
    shares = {"tune": Fraction(fraction=0.3), "select": Fraction(fraction=0.1), "test": Fraction(fraction=0.2)}
    return Datasets.model_validate({"train": data, **shares, **more})


def listed(splits: Splits) -> list[list[Any]]:
    return [list(splits.rows(name)) for name in ("train", "tune", "select", "test")]


def failure(data: DataFile, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_splits(datasets(data, **more))
    return str(caught.value)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "jsonl"])
def test_a_format_gives_the_splits_of_jsonl(tmp_path: Path, name: str, kind: str) -> None:
    rows, settings = TYPES[kind]
    write_jsonl(tmp_path / "plain.jsonl", rows)
    plain = load_splits(datasets(DataFile(path=str(tmp_path / "plain.jsonl"), **settings)))
    suffix, write = WRITERS[name]
    write(tmp_path / f"rows{suffix}", rows)
    other = load_splits(datasets(DataFile(path=str(tmp_path / f"rows{suffix}"), **settings)))
    assert listed(other) == listed(plain)
    assert all(len(split) > 2 for split in listed(plain))
    assert other.warnings == plain.warnings


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", STREAMED)
def test_streamed_rows_are_the_plain_ones(tmp_path: Path, name: str, kind: str) -> None:
    rows, settings = TYPES[kind]
    suffix, write = WRITERS[name]
    write(tmp_path / f"rows{suffix}", rows)
    data = DataFile(path=str(tmp_path / f"rows{suffix}"), **settings)
    plain, lazy = (load_splits(datasets(data.model_copy(update={"streaming": on}))) for on in (False, True))
    assert listed(lazy) == listed(plain)
    assert [lazy.train[i] for i in range(len(lazy.train))] == list(plain.train)
    assert (lazy.train[-1], list(lazy.tune[2:9:3])) == (plain.train[-1], list(plain.tune[2:9:3]))
    assert list(lazy.test.ids) == [row.id for row in plain.test]  # type: ignore[attr-defined]
    with pytest.raises(IndexError):
        lazy.train[len(lazy.train)]


def test_every_format_has_its_suffixes_and_its_reader() -> None:
    kinds = set(get_args(get_args(DataFile.model_fields["ds_type"].annotation)[0]))
    assert set(READERS) == kinds == set(SUFFIXES.values())


def test_ds_type_names_the_format_where_the_suffix_does_not(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.txt", ROWS)
    data = DataFile(path=str(tmp_path / "rows.txt"), **PROMPTS)
    assert "its suffix .txt tells no format; write ds_type: json, csv" in failure(data)
    assert len(read_rows(data.model_copy(update={"ds_type": "csv"}))) == len(ROWS)


def test_a_folder_and_a_pattern_are_their_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    (folder / "b").mkdir(parents=True)
    write_parquet(folder / "a.parquet", ROWS[:100])
    write_parquet(folder / "b" / "z.parquet", ROWS[100:])
    (folder / "README.md").write_text("no rows")
    (folder / "_SUCCESS.json").write_text("{}")
    (folder / ".hidden.parquet").write_text("")
    write_jsonl(tmp_path / "all.jsonl", ROWS)
    plain = load_splits(datasets(DataFile(path=str(tmp_path / "all.jsonl"), **PROMPTS)))
    for path in (folder, folder / "**" / "*.parquet"):
        for streaming in (False, True):
            data = DataFile(path=str(path), streaming=streaming, **PROMPTS)
            assert listed(load_splits(datasets(data))) == listed(plain)
    write_csv(folder / "x.csv", ROWS[:3])
    assert "several formats (1 of csv, 2 of parquet)" in failure(DataFile(path=str(folder), **PROMPTS))
    assert len(read_rows(DataFile(path=str(folder), ds_type="csv", **PROMPTS))) == 3


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "matches no file" in failure(DataFile(path=str(tmp_path / "*.csv"), **PROMPTS))
    assert "holds no data file (.csv, .tsv)" in failure(DataFile(path=str(tmp_path), ds_type="csv", **PROMPTS))
    (tmp_path / "x.parquet.gz").write_bytes(b"")
    assert "gzip is read for JSONL and CSV alone" in failure(DataFile(path=str(tmp_path / "x.parquet.gz"), **PROMPTS))
    (tmp_path / "x.csv.zst").write_bytes(b"")
    assert ".zst files can't be read; unpack it" in failure(DataFile(path=str(tmp_path / "x.csv.zst"), **PROMPTS))


def test_names_with_signs_of_patterns_are_names(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows [1]*.csv", ROWS)
    path = str(tmp_path / "rows [1]*.csv")
    assert find_files(path) == (path,)
    assert format_of(path.upper()) == "csv"
    assert len(read_rows(DataFile(path=path, **PROMPTS))) == len(ROWS)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"p,c\na,b\nx,y,z\n", "line 3: has 3 fields, but the header names 2"),
        (b"p,c\na,b\nx\n", "line 3: has 1 fields, but the header names 2"),
        (b'p,c\na,b\n"x\ny",z\n\n"open,b\nmore\n', "line 6: a quote is opened and never closed"),
        (b'p,c\n"a" b,c\n', "line 2: a quote inside a quoted field must be doubled"),
        (b"p,c\na,b\n\xe9t\xe9,b\n", "line 3: not UTF-8 text (invalid continuation byte 0xe9); if it is Windows-1252"),
        (b'p,c\na,"b\n\xff"\n', "line 2: not UTF-8 text"),
        (b"p,c\na\0b,c\n", "line 2: holds a NUL byte"),
        (b"p,c\na,\n", "line 2: 'c' must be text with something in it"),
        (b"p,p,c\na,b,c\n", "the columns 'p' stand twice"),
        (b"prompt,c\na,b\n", "has no column 'p'"),
        (b'"p,c\na,b\n', "line 1: the header can't be read: a quote is opened and never closed"),
        (b"\n \n", "has no rows"),
        (b"p,c\n", "has no rows"),
        (b"\xff\xfep\0,\0c\0\n\0", "looks like UTF-16, not like UTF-8 text"),
        (b"PK\x03\x04rest", "looks like a ZIP or XLSX file"),
        (b"p,c\ra,b\rx,y\r", "line 1: the header can't be read: a carriage return without a line feed"),
    ],
)
def test_a_broken_csv_is_explained(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    message = failure(DataFile(path=str(path), type="prompt_completion", field_prompt="p", field_completion="c"))
    assert f"{path}{', ' if told.startswith('line') else ': '}{told}" in message


def test_a_broken_record_hides_none_of_those_after_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    good = [f'"q {i}\n",a {i}' for i in range(100)]
    bad = ['"x" y,z', "one", "\udcff\udcfe,b", '"two\n\udcff",b', "a\0,b", "1,2,3"]
    lines = [line for i, row in enumerate(good) for line in ([row, bad[i // 10]] if i % 10 == 5 and i < 60 else [row])]
    path.write_bytes("\n".join(["p,c", *lines]).encode(errors="surrogateescape"))
    data = DataFile(path=str(path), type="prompt_completion", field_prompt="p", field_completion="c")
    plain, lazy = (
        load_splits(datasets(data.model_copy(update={"streaming": on}), on_bad_row="skip")) for on in (False, True)
    )
    found = {row.completion for split in listed(plain) for row in split}
    assert found == {f"a {i}" for i in range(100)}
    assert plain.skipped == lazy.skipped == 6
    assert listed(lazy) == listed(plain)
    assert "train: 6 of 106 rows are broken and were left out (on_bad_row: skip)" in plain.warnings[0]
    assert f"{path}, line 14: " in plain.warnings[0]
    assert "; and 1 more" in plain.warnings[0]


@pytest.mark.parametrize("on", [False, True])
def test_mostly_broken_files_are_refused_whatever_on_bad_row_says(tmp_path: Path, on: bool) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "good"}\n{"text": 1}\n{"text": 2}\n')
    message = failure(DataFile(path=str(path), type="text", streaming=on), on_bad_row="skip")
    assert f"{path}: 2 of 3 rows are broken, which is more than `on_bad_row: skip` passes over" in message
    assert f"{path}, line 2: 'text' must be text" in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            '[\n {"text": "a"},\n {"text": "b"}\n {"text": "c"}]',
            ", line 4: not JSON (a comma or the array's end is wanted)",
        ),
        ('[\n {"text": "a"},\n {"text" "b"}]', ", line 3: not JSON (Expecting ':' delimiter"),
        ('[\n {"text": "a"},\n 5]', ", line 3: a int, but an object is wanted"),
        ('[{"text": "a"}', ", line 1: not JSON (a comma or the array's end is wanted)"),
        ("[]", ": has no rows"),
        ("[ ", ", line 1: not JSON"),
    ],
)
def test_a_broken_array_is_explained(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    assert f"{path}{told}" in failure(DataFile(path=str(path), type="text"))


def test_objects_a_line_may_stand_in_a_json_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.json", ROWS)
    assert len(read_rows(DataFile(path=str(tmp_path / "t.json"), **PROMPTS))) == len(ROWS)


def test_a_broken_parquet_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    data = DataFile(path=str(path), type="text")
    path.write_bytes(b"PAR1 and no more")
    assert f"{path}: can't be read as Parquet (" in failure(data)
    write_parquet(path, [{"text": f"text {i}"} for i in range(60)] + [{"text": None}])
    assert f"{path}, row 61 (row group 2 of 2): 'text' must be text with something in it, but is null" in failure(data)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path}: can't be read as Parquet (" in failure(data)
    path.write_bytes(whole[:10] + b"\xff" * 200 + whole[210:])
    assert f"{path}, row group 1: can't be read as Parquet (" in failure(data)
    pq.write_table(pa.table({"text": [b"\xff\xfe", b"x"]}), path)
    assert "row 1 (row group 1 of 1): 'text' must be text" in failure(data)
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    assert "the columns 'text' stand twice" in failure(data)


def test_a_broken_arrow_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    write_arrow(path, ROWS)
    data = DataFile(path=str(path), type="text", field_text="reponse")
    assert "has no column 'reponse'; did you mean 'réponse'? (columns: " in failure(data)
    path.write_bytes(path.read_bytes()[:300])
    assert f"{path}: can't be read as Arrow (" in failure(data)
    path.write_bytes(b"")
    assert f"{path}: can't be read as Arrow (" in failure(data)


def test_packed_files_are_refused_where_rows_are_read_by_their_place(tmp_path: Path) -> None:
    for name, told in (
        ("packed jsonl", "gzip has none; unpack the file"),
        ("json array", "a JSON array can't be streamed"),
        ("packed feather", "write it with compression='uncompressed'"),
    ):
        suffix, write = WRITERS[name]
        write(tmp_path / f"rows{suffix}", ROWS * 20)
        assert told in failure(DataFile(path=str(tmp_path / f"rows{suffix}"), streaming=True, **PROMPTS))
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"prompt,completion\n" * 5000)[:40])
    assert "can't be read (" in failure(DataFile(path=str(tmp_path / "cut.csv.gz"), type="prompt_completion"))


def test_older_data_sets_hold_chats_as_columns(tmp_path: Path) -> None:
    turned = [
        {"messages": {key: [m[key] for m in row["messages"]] for key in ("role", "content")}, "doc": row["doc"]}
        for row in CHATS
    ]
    write_parquet(tmp_path / "turned.parquet", turned)
    write_jsonl(tmp_path / "plain.jsonl", CHATS)
    plain, other = (read_rows(DataFile(path=str(tmp_path / n), type="chat")) for n in ("plain.jsonl", "turned.parquet"))
    assert plain == other


@pytest.mark.parametrize("value", [None, "", float("nan"), " "])
def test_a_row_without_a_group_is_a_bad_one(tmp_path: Path, value: Any) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "doc": value}])
    message = failure(DataFile(path=str(tmp_path / "t.jsonl"), type="text", group_by="doc"))
    assert "line 1: 'doc' must tell the row's group (`group_by`)" in message


@pytest.mark.parametrize("name", STREAMED)
def test_a_file_that_changes_while_it_is_streamed_is_noticed(tmp_path: Path, name: str) -> None:
    suffix, write = WRITERS[name]
    path = tmp_path / f"rows{suffix}"
    write(path, ROWS)
    lazy = load_splits(datasets(DataFile(path=str(path), streaming=True, **PROMPTS)))
    assert lazy.train[3].prompt is not None
    write(path, [{**row, "réponse": row["réponse"].replace("e", "E")} for row in ROWS] + ROWS[:1])
    with pytest.raises(UserError, match="was changed while it was in use"):
        lazy.train[3]


def test_a_row_that_was_replaced_under_an_equal_stamp_is_noticed(tmp_path: Path) -> None:
    import os

    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    lazy = load_splits(datasets(DataFile(path=str(path), streaming=True, **PROMPTS)))
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"answer", b"reply "))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=r"rows.jsonl, line \d+: has changed since it was split"):
        list(lazy.train)


def test_files_of_another_hash_are_refused(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    data = DataFile(path=str(path), content_hash=right, **PROMPTS)
    assert len(read_rows(data)) == len(ROWS)
    path.write_bytes(path.read_bytes() + b"\n")
    assert "has changed since the sweep was begun (SHA-256 " in failure(data)
