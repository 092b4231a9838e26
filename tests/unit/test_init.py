"""`stockpot init`: whatever the data are, the file it writes passes `check`, or one message says why there is none."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

import pipelines
from pipelines.splits import load_splits
from sweeps import cli
from sweeps.load import LoadedSweep, load_file
from sweeps.starter import STARTERS
from sweeps.starter.quote import comment, quoted
from sweeps.starter.sft import steps
from sweeps.yaml_source import read

ROWS = [{"prompt": f"What is {i} + {i}?", "completion": f"The sum is {2 * i}."} for i in range(200)]
CHAT = [
    {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i}"}]} for i in range(60)
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows in the format of the suffix."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif name.endswith((".arrow", ".feather")):
        pa.feather.write_feather(pa.Table.from_pylist(list(rows)), str(path), compression="uncompressed")
    else:
        text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text, encoding="utf-8")
    return path


def init(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert cli.main(["init", *words]) == status, capsys.readouterr().err
    said = capsys.readouterr()
    return said.err if status else said.out


def checked(capsys: pytest.CaptureFixture[str], file: str = "sweep.yaml") -> LoadedSweep:
    """The file, after `check --data` has passed it."""
    status = cli.main(["check", file, "--data", "--json"])
    said = capsys.readouterr()
    assert status == 0, said.err
    loaded = load_file(file)
    rows = json.loads(said.out)["rows"]
    assert all(rows[split] > 0 for split in ("train", "tune", "select", "test"))
    return loaded


def train(loaded: LoadedSweep) -> dict[str, Any]:
    return loaded.resolve({"learning_rate": 1e-4, "lora_r": 8})["datasets"]["train"]


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.ndjson", "r.json", "r.jsonl.gz", "r.csv", "r.tsv", "r.parquet", "r.arrow", "r.feather"]
)
def test_every_format_gives_a_file_that_check_passes(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / name, ROWS)
    said = init(capsys, "sft", name)
    assert f"train: {name}, 200 rows" in said
    assert said.endswith("wrote sweep.yaml\nnext: stockpot check sweep.yaml\n")
    loaded = checked(capsys)
    assert train(loaded)["type"] == "prompt_completion"
    text = (here / "sweep.yaml").read_text()
    assert f"train: {{path: {name}, type: prompt_completion}}" in text


def test_the_file_says_what_every_line_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "r.jsonl", ROWS)
    init(capsys, "sft", "r.jsonl")
    bare = [line for line in (here / "sweep.yaml").read_text().splitlines() if "#" not in line]
    assert [line.split(":")[0].strip() for line in bare] == ["datasets", "train", "learning_rate"]
    loaded = checked(capsys)
    assert loaded.spec.name == "r-sft"
    assert loaded.spec.method.type == "tpe"
    assert loaded.spec.soup is not None
    assert loaded.milestones == (loaded.total // 9, loaded.total // 3, loaded.total)


@pytest.mark.parametrize(
    ("row", "kind", "fields"),
    [
        ({"prompt": "p{}", "completion": "c"}, "prompt_completion", {}),
        ({"id": "{}", "Question": "p{}", "ANSWER ": "c"}, "prompt_completion", {"field_prompt": "Question", "field_completion": "ANSWER "}),
        ({"instruction": "p{}", "input": "", "output": "c"}, "prompt_completion", {"field_prompt": "instruction", "field_completion": "output"}),
        ({"input": "p{}", "output": "c"}, "prompt_completion", {"field_prompt": "input", "field_completion": "output"}),
        ({"text": "some text {}"}, "text", {}),
        ({"body": "some text {}", "n": 3}, "text", {"field_text": "body"}),
        ({"éàü": "some text {}"}, "text", {"field_text": "éàü"}),
        ({"messages": [{"role": "user", "content": "p{}"}, {"role": "assistant", "content": "c"}]}, "chat", {}),
        ({"turns": [{"role": "user", "content": "p{}"}, {"role": "assistant", "content": "c"}]}, "chat", {"field_messages": "turns"}),
        ({"prompt": "p{}", "messages": "", "response": "c"}, "prompt_completion", {"field_completion": "response"}),
    ],
)  # fmt: skip
def test_shapes_are_told_from_names_and_rows(
    row: dict[str, Any], kind: str, fields: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(json.dumps(row).replace("{}", str(i))) for i in range(100)]
    write(here / "r.jsonl", rows)
    init(capsys, "sft", "r.jsonl")
    found = train(checked(capsys))
    assert found["type"] == kind
    assert {key: found[key] for key in fields} == fields


def test_messages_in_a_csv_cell_are_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "r.csv", [{"id": i, "messages": json.dumps(row["messages"])} for i, row in enumerate(CHAT)])
    init(capsys, "sft", "r.csv")
    assert train(checked(capsys))["type"] == "chat"


HOSTILE = ["a: b", "# no", "{x}", "[y", "it's", 'say "hi"', "back\\slash", "tab\tin", "null", "1e5", "true", "- z", "&a", "*b",
           "!tag", "%d", "@at", "`tick", "e\u0301", "🍲", "\u202eright to left", "line\nbreak", "\x1b[31mred", "\x7f", " blank "]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_column_names_come_back_as_they_are(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{name: f"question {i}", name + "2": "answer"} for i in range(100)]
    write(here / "r.jsonl", rows)
    said = init(capsys, "sft", "r.jsonl", f"--field-prompt={name}", f"--field-completion={name}2")
    assert "\x1b" not in said
    found = train(checked(capsys))
    assert (found["field_prompt"], found["field_completion"]) == (name, name + "2")


@pytest.mark.parametrize("name", ["a b.csv", "#1.csv", "x: y.csv", "[1].csv", "*.csv", "-n.csv", "~.csv", "ü.csv"])
def test_hostile_file_names_are_found_again(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / name, ROWS)
    init(capsys, "sft", f"./{name}")
    assert train(checked(capsys))["path"] == str(here / name)


@pytest.mark.parametrize(
    "text",
    [
        *HOSTILE,
        "",
        "plain",
        "a/b-c.jsonl",
        "x, y",
        "0x10",
        "~",
        "5",
        "-.5",
        "<<",
        "=",
        "package://a/b.gguf",
        "a://",
        "s://x: y",
    ],
)
def test_quoted_texts_are_read_back(text: str) -> None:
    document = read(f"key: {{inner: {quoted(text)}}} # {comment(text)}\n".encode())
    assert document.problems == []
    assert document.data == {"key": {"inner": text}}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", b"", "has no rows"),
        ("r.csv", b"", "has no rows"),
        ("r.csv", b"prompt,completion\n", "has no rows below its header ('prompt', 'completion')"),
        ("r.json", b"[]", "has no rows"),
        ("r.jsonl", b'{"prompt": "a", "completion": "b"}\n', "has 1 row; at least 16 different prompts"),
        ("r.jsonl", b'{"prompt": "a", "completion": "b"}\n' * 99, "has 99 rows with 1 different prompt; at least"),
        ("r.csv", b"prompt,completion\n" + "caf\xe9,noir\n".encode("latin-1") * 30, "save the file as UTF-8"),
        ("r.jsonl", "prompt".encode("utf-16"), "looks like UTF-16"),
        ("r.csv", b"prompt,completion\na,b,c\n" * 30, "has 3 fields, but the header names 2"),
        ("r.csv", b"prompt,prompt\na,b\n" * 30, "'prompt' stand twice"),
        ("r.jsonl", b'{"prompt": 1, "completion": 2}\n' * 30, "can't be told apart"),
        ("r.jsonl", b"[1]\n" * 30, "an object is wanted"),
        ("r.jsonl", b"{'prompt': 1}\n" * 30, "not JSON"),
        ("r.parquet", b"PAR1 but not really", "can't be read as Parquet"),
        ("r.jsonl", b'{"s": "a", "t": "b"}\n' * 30, "there are: 's', 't'"),
        ("r.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 30, "stockpot init dpo DATA"),
        ("r.jsonl", b'{"instruction": "a", "input": "b", "output": "c"}\n' * 30, "'input' is filled in 30 of the 30"),
        ("r.jsonl", b'{"conversations": [{"from": "human", "value": "x"}]}\n' * 30, "can be used"),
        ("r.txt", b"hello\n" * 30, "its suffix .txt tells no format"),
        ("r.zip", b"PK\x03\x04", ".zip files can't be read"),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_is_written(
    name: str, content: bytes, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / name).write_bytes(content)
    error = init(capsys, "sft", name, status=2)
    assert error.startswith("stockpot: ")
    assert said in error
    assert os.listdir(here) == [name]


def test_unknown_columns_are_answered_with_those_that_are_known(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "r.csv", [{"alpha": f"a {i}", "beta": f"b {i}"} for i in range(50)])
    error = init(capsys, "sft", "r.csv", status=2)
    assert "there are: 'alpha', 'beta'" in error
    assert "question" in error
    assert "--type=prompt_completion --field-prompt=COLUMN" in error
    init(capsys, "sft", "r.csv", "--field-prompt", "alpha", "--field-completion", "beta")
    assert train(checked(capsys))["field_completion"] == "beta"
    assert "'gamma'" in init(capsys, "sft", "r.csv", "--field-text=gamma", "--force", status=2)
    assert "did you mean 'chat'" in init(capsys, "sft", "r.csv", "--type=chatt", "--force", status=2)
    assert "means nothing" in init(capsys, "sft", "r.csv", "--type=text", "--field-prompt=a", "--force", status=2)


def test_broken_rows_are_left_out_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(row) for row in ROWS]
    lines[6] = '{"prompt": "# }: evil", "completion": ""}'
    (here / "r.jsonl").write_text("\n".join(lines))
    said = init(capsys, "sft", "r.jsonl")
    assert "1 of the 200 rows looked at are broken and will be left out" in said
    assert "r.jsonl, line 7" in said
    assert load_file("sweep.yaml").spec.pipeline.datasets.on_bad_row == "skip"
    checked(capsys)


def test_a_folder_of_splits_brings_its_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here / "maths"
    folder.mkdir()
    for number in range(2):
        write(folder / f"train-{number:05d}-of-00002.parquet", ROWS[number * 60 : number * 60 + 60])
    write(folder / "validation-00000-of-00001.parquet", ROWS[120:150])
    write(folder / "test-00000-of-00001.parquet", ROWS[150:])
    init(capsys, "sft", "maths")
    loaded = checked(capsys)
    datasets = loaded.spec.pipeline.datasets
    assert loaded.spec.name == "maths-sft"
    assert datasets.train.path.endswith("maths/train*.parquet")
    assert datasets.tune.path.endswith("validation-00000-of-00001.parquet")
    assert datasets.select.fraction == 0.15
    splits = load_splits(datasets)
    assert len(splits.tune) == 30
    assert len(splits.test) == 50
    assert len(splits.train) + len(splits.select) == 120


def test_files_beside_train_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "d").mkdir()
    write(here / "d" / "train.jsonl", ROWS[:150])
    write(here / "d" / "test.jsonl", ROWS[150:])
    assert "stockpot init sft d takes test.jsonl as test" in init(capsys, "sft", "d/train.jsonl")


def test_a_few_rows_in_another_encoding_are_not_just_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(f"{i},{'é' if i % 10 == 3 else 'e'}\n" for i in range(100))
    (here / "r.csv").write_bytes(b"prompt,completion\n" + text.encode("latin-1"))
    assert "r.csv, line 5: not UTF-8 text" in init(capsys, "sft", "r.csv", status=2)


def test_a_prompt_in_two_files_is_dropped_from_train(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "d").mkdir()
    write(here / "d" / "train.jsonl", ROWS[:150])
    write(here / "d" / "test.jsonl", ROWS[140:])
    assert "dropped from train" in init(capsys, "sft", "d")
    assert checked(capsys).spec.pipeline.datasets.on_duplicate == "drop_train"


def test_a_folder_of_different_things_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "d").mkdir()
    write(here / "d" / "documents.jsonl", [{"text": f"t {i}"} for i in range(90)])
    write(here / "d" / "questions.jsonl", ROWS[:50])
    error = init(capsys, "sft", "d", status=2)
    assert "hold different things" in error
    assert "(columns" not in error
    (here / "empty").mkdir()
    assert "holds no data file" in init(capsys, "sft", "empty", status=2)
    write(here / "empty" / "a.csv", ROWS)
    write(here / "empty" / "b.jsonl", ROWS)
    assert "several formats" in init(capsys, "sft", "empty", status=2)


def test_a_pattern_and_a_suffix_that_tells_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "a1.jsonl", ROWS[:100])
    write(here / "a2.jsonl", ROWS[100:])
    assert "200 rows" in init(capsys, "sft", "a*.jsonl")
    checked(capsys)
    write(here / "x.parquet", ROWS).rename(here / "x.data")
    init(capsys, "sft", "x.data", "-o", "x.yaml")
    assert train(checked(capsys, "x.yaml"))["ds_type"] == "parquet"


def test_without_data_the_only_file_is_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = init(capsys, "sft", status=2)
    assert "there is none here" in error
    assert "stockpot init sft data/train.jsonl" in error
    (here / "data").mkdir()
    write(here / "data" / "mine.csv", ROWS)
    assert init(capsys, "sft").startswith("using data/mine.csv, the only data file here\n")
    assert checked(capsys).spec.name == "mine-sft"
    write(here / "a.jsonl", ROWS)
    write(here / "b.jsonl", ROWS)
    assert "here are: a.jsonl, b.jsonl" in init(capsys, "sft", "--force", status=2)


def test_a_file_that_is_there_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "r.jsonl", ROWS)
    (here / "sweep.yaml").write_text("mine")
    assert "--force overwrites it" in init(capsys, "sft", "r.jsonl", status=2)
    assert (here / "sweep.yaml").read_text() == "mine"
    (here / "gone.yaml").symlink_to("nowhere.yaml")
    assert "is there already" in init(capsys, "sft", "r.jsonl", "-o", "gone.yaml", status=2)
    assert "is a folder" in init(capsys, "sft", "r.jsonl", "-o", ".", status=2)
    assert "there is no folder" in init(capsys, "sft", "r.jsonl", "-o", "no/x.yaml", status=2)
    init(capsys, "sft", "r.jsonl", "--force")
    checked(capsys)
    assert sorted(path.name for path in here.iterdir()) == ["gone.yaml", "r.jsonl", "sweep.yaml"]


def test_the_model_is_checked_and_paths_are_relative_to_the_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here / "r.jsonl", ROWS)
    (here / "in").mkdir()
    init(capsys, "sft", "r.jsonl", "-o", "in/s.yaml", "--base-model", "owner/some-model")
    assert "path: ../r.jsonl" in (here / "in" / "s.yaml").read_text()
    assert checked(capsys, "in/s.yaml").resolve({})["base_model"] == "owner/some-model"
    assert "is not there" in init(capsys, "sft", "r.jsonl", "--base-model", "./nowhere", status=2)
    assert not (here / "sweep.yaml").exists()


def test_the_name_is_a_free_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "Käse & co").mkdir()
    write(here / "Käse & co" / "train.csv", ROWS)
    for wanted in ("K-se-co-sft", "K-se-co-sft-2", "K-se-co-sft-3"):
        init(capsys, "sft", "Käse & co/train.csv", "--force")
        assert checked(capsys).spec.name == wanted
        (here / "stockpot-runs" / wanted).mkdir(parents=True)


def test_a_name_that_is_no_utf8_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "r.jsonl", ROWS).rename(os.fsdecode(os.fsencode(here) + b"/caf\xe9.jsonl"))
    error = init(capsys, "sft", os.fsdecode(b"caf\xe9.jsonl"), status=2)
    assert "its name is not UTF-8" in error
    error.encode()


def test_hub_data_are_not_fetched(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing is fetched from the hub" in init(capsys, "sft", "owner/rows", status=2)
    assert "not looked at" in init(capsys, "sft", "owner/rows", "--type", "chat")
    assert load_file("sweep.yaml").spec.pipeline.datasets.train.path == "owner/rows"


def test_pipelines_that_are_not_there_are_refused_by_the_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(STARTERS) <= set(pipelines.PIPELINES)
    write(here / "r.jsonl", ROWS)
    assert "has no column 'chosen'" in init(capsys, "dpo", "r.jsonl", status=2)
    assert "did you mean 'sft'" in init(capsys, "sf", "r.jsonl", status=2)
    assert "stockpot init sft r.jsonl" in init(capsys, "r.jsonl", status=2)
    assert "(sft, dpo, rag): stockpot init sft [DATA]" in init(capsys, status=2)
    assert "only for: sft, dpo, rag" in init(capsys, "custom", status=2)


@pytest.mark.parametrize(
    ("row", "kind", "loss"),
    [
        ({"prompt": "{i}", "chosen": "good", "rejected": "bad"}, "preference", "sigmoid"),
        ({"prompt": "{i}", "completion": "fair", "label": True}, "unpaired_preference", "kto"),
    ],
)
def test_preferences_begin_a_sweep(
    row: dict[str, Any], kind: str, loss: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here / "r.jsonl", [{**row, "prompt": f"question {i}"} for i in range(400)])
    assert f"rows: {kind}" in init(capsys, "dpo", "r.jsonl")
    loaded = checked(capsys)
    assert (loaded.spec.pipeline.datasets.train.type, loaded.metric) == (kind, "tune/reward_accuracy")
    assert (
        loaded.resolve(loaded.space.sample(lambda name, domain: getattr(domain, "values", [1e-5])[0])[0])["loss"][
            "type"
        ]
        == loss
    )
    assert "rows of chat hold no preference" in init(capsys, "dpo", "r.jsonl", "--type", "chat", "--force", status=2)


def test_answers_that_can_be_right_are_compared(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "short.jsonl", [{"prompt": f"{i}", "completion": "yes"} for i in range(90)])
    init(capsys, "sft", "short.jsonl", "-o", "a.yaml")
    assert [entry.type for entry in checked(capsys, "a.yaml").spec.evaluate] == ["exact_match"]
    write(here / "objects.jsonl", [{"prompt": f"{i}", "completion": f'{{{{"n": {i}}}}}'} for i in range(90)])
    init(capsys, "sft", "objects.jsonl", "-o", "b.yaml")
    assert [entry.type for entry in checked(capsys, "b.yaml").spec.evaluate] == ["json_fields"]


def test_many_rows_are_counted_by_their_lines(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.starter.look.LOOKED_AT", 50)
    for name in ("r.jsonl", "r.csv", "r.parquet"):
        write(here / name, ROWS)
        assert f"train: {name}, about 200 rows" in init(capsys, "sft", name, "--force")
        checked(capsys)
    for name in ("r.json", "r.arrow", "r.jsonl.gz"):
        write(here / name, ROWS)
        assert f"train: {name}, an unknown number of rows" in init(capsys, "sft", name, "--force")
        checked(capsys)


@pytest.mark.parametrize("rows", [None, 1, 40, 500, 1999, 2000, 9_999, 10_000, 10**7])
def test_steps_are_a_multiple_of_nine_in_bounds(rows: int | None) -> None:
    total, passes = steps(rows)
    assert total % 9 == 0
    assert 27 <= total <= 900
    assert passes is None if rows is None else passes == pytest.approx(total * 16 / rows)
    assert steps(500)[0] == 99


def test_no_file_and_no_data_name_init(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("submit", "check"):
        assert cli.main([command]) == 2
        assert "`stockpot init sft DATA` writes one" in capsys.readouterr().err
    (here / "s.yaml").write_text("name: s\npipeline: {type: sft, base_model: a/b, max_steps: 9}\nmetric: loss\n")
    assert cli.main(["check", "s.yaml"]) == 2
    assert "stockpot init sft DATA" in capsys.readouterr().err


def test_first_steps_load_nothing_heavy(here: Path) -> None:
    write(here / "r.csv", ROWS)
    steps = [
        ["init", "sft", "r.csv"],
        ["check", "sweep.yaml"],
        ["explain", "lr"],
        ["schema", "-o", "s.json"],
        ["--help"],
    ]
    program = (
        f"import sys\nfrom sweeps.cli import main\nstatus = [main(words) for words in {steps!r}]\n"
        "print(status, *sorted({'torch', 'ray', 'transformers', 'peft', 'datasets', 'optuna', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 0, 0, 0]"], done.stderr
