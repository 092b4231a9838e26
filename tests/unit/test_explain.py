"""`stockpot explain`: every key of the spec has its entry, foreign words lead to ours, and the page is what the spec says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluators.config import EVALUATOR_CONFIGS
from pipelines.config import PIPELINE_CONFIGS, DataFile
from sweeps import cli
from sweeps.explain import NEVER_WRITTEN, find, sections
from sweeps.foreign import DISTRIBUTIONS, DOMAIN_NAMES, NOT_HERE, PIPELINE_NAMES, SWEEP_NAMES, VALUES
from sweeps.parameters import DISTRIBUTION_NAMES, RESERVED
from sweeps.reference import overview, page
from sweeps.schema import file_schema
from sweeps.spec import SweepSpec

ROOT = Path(__file__).parents[2]
KEYS = {key.path: key for section in sections() for key in section.keys}


def explain(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert cli.main(["explain", *words]) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def test_every_key_of_the_spec_is_there_with_a_text() -> None:
    assert set(SweepSpec.model_fields) <= set(KEYS)
    for model in PIPELINE_CONFIGS:
        assert {f"pipeline.{name}" for name in model.model_fields} - {f"pipeline.{n}" for n in NEVER_WRITTEN} <= set(
            KEYS
        )
    assert {f"pipeline.datasets.train.{name}" for name in DataFile.model_fields if name not in NEVER_WRITTEN} <= set(
        KEYS
    )
    for model in EVALUATOR_CONFIGS:
        assert {f"evaluate.{name}" for name in model.model_fields} <= set(KEYS)
    silent = [path for path, key in KEYS.items() if not key.text and key.name != "type"]
    assert silent == []
    assert [section.title for section in sections() if not section.text] == []


def test_a_pattern_is_told_in_words() -> None:
    told = {path: key.type for path, key in KEYS.items()}
    assert told["pipeline.generate.base_url"] == "an address that begins with http:// or https://"
    assert told["pipeline.import_path"] == "'module:Class'"
    assert [path for path, words in told.items() if "matches" in words] == []


def test_the_words_of_parameters_are_the_parsers() -> None:
    words = {key.name for section in sections() if section.path.startswith("parameters") for key in section.keys}
    assert words == {*RESERVED, "KEY"}
    distribution = KEYS["parameters.KEY.distribution"]
    assert distribution.type == " | ".join(DISTRIBUTION_NAMES)
    assert [name for name in DISTRIBUTION_NAMES if f"`{name}`" not in distribution.text] == []


@pytest.mark.parametrize(
    ("word", "paths"),
    [
        ("learning_rate", ["pipeline.learning_rate"]),
        ("pipeline.learning_rate", ["pipeline.learning_rate"]),
        ("parameters.learning_rate", ["pipeline.learning_rate"]),
        ("early_terminate.eta", ["early_terminate.eta"]),
        ("early_terminate.asha.eta", ["early_terminate.eta"]),
        ("eta", ["early_terminate.eta"]),
        ("datasets.train.limit", ["pipeline.datasets.train.limit"]),
        ("datasets.test.limit", ["pipeline.datasets.test.limit"]),
        ("datasets.select.fraction", ["pipeline.datasets.select.fraction"]),
        ("lora_alpha", ["pipeline.lora_alpha"]),
        ("evaluate.max_new_tokens", ["evaluate.max_new_tokens"]),
        ("log_uniform_values", ["parameters.KEY.distribution"]),
        ("oom", ["on_failure.oom"]),
    ],
)
def test_keys_are_found_dotted_and_bare(word: str, paths: list[str]) -> None:
    assert list(dict.fromkeys(key.path for section in find(word) for key in section.keys)) == paths


@pytest.mark.parametrize("path", KEYS)
def test_every_key_is_explained(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = explain(capsys, path)
    assert said.splitlines()[0] == path
    assert "\n  may be   " in said
    assert (
        " ".join(KEYS[path].text.split()[:3]) in " ".join(said.split())
        or path == "soup.method"
        or KEYS[path].name == "type"
    )


def test_an_entry_says_type_bounds_default_and_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(capsys, "early_terminate.eta") == (
        "early_terminate.eta\n  One in eta goes on.\n  may be   whole number, at least 2\n  default  3\n"
        "  where    under early_terminate, where its type is asha\n"
    )
    said = explain(capsys, "seed_data")
    assert "the same in all trials, so it can't be swept" in said
    assert "may be swept under parameters" in " ".join(explain(capsys, "lora_r").split())
    assert "default  none, it must be given" in explain(capsys, "base_model")
    assert "cosine | linear | constant | constant_with_warmup" in explain(capsys, "lr_scheduler")
    assert "see also: early_terminate.type, evaluate.type, " in explain(capsys, "type")


def test_sections_and_variants_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    soup = explain(capsys, "soup")
    assert soup.startswith("soup\n  The soup; none without this section.\n")
    assert "soup, method: greedy\n" in soup
    assert "\n    tie          Whether an equal score" in soup
    tpe = explain(capsys, "tpe")
    assert tpe.startswith("method, type: tpe\n")
    assert tpe == explain(capsys, "method.tpe")
    assert "n_startup_trials" in tpe
    for word in ("sft", "asha", "exact_match", "nsga2", "datasets", "pipeline", "method", "parameters"):
        explain(capsys, word)


def test_foreign_names_are_answered_with_ours(capsys: pytest.CaptureFixture[str]) -> None:
    said = explain(capsys, "per_device_train_batch_size")
    assert said.startswith(
        "Hugging Face's per_device_train_batch_size is `micro_batch_size` here\n\npipeline.micro_batch_size\n"
    )
    assert "early_terminate, type: asha" in explain(capsys, "hyperband")
    assert explain(capsys, "do_train") == "nothing turns training off; delete it\n"


@pytest.mark.parametrize(
    "word", sorted({*PIPELINE_NAMES, *SWEEP_NAMES, *NOT_HERE, *DOMAIN_NAMES, *DISTRIBUTIONS, *(w for t in VALUES.values() for w in t)})
)  # fmt: skip
def test_no_foreign_word_is_unknown(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(capsys, word).strip()


@pytest.mark.parametrize("table", [PIPELINE_NAMES, SWEEP_NAMES], ids=["pipeline", "sweep"])
def test_the_keys_that_foreign_names_mean_are_there(table: dict[str, tuple[str, str]]) -> None:
    gone = [ours for _, ours in table.values() if not find(ours.split(":")[0].split(" ")[0])]
    assert gone == []


def test_unknown_words_get_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'learning_rate'?" in explain(capsys, "learning_rat", status=2)
    assert "did you mean 'learning_rate'?" in explain(capsys, "pipeline.learnig_rate", status=2)
    assert "`stockpot explain` lists all" in explain(capsys, "xyzzy", status=2)
    for word in ("", " ", ".", "pipeline.", "parameters.", "\x1b[31m", "a" * 10_000):
        said = explain(capsys, word, status=2)
        assert "\x1b" not in said
        assert len(said) < 300


def test_without_a_key_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    said = explain(capsys)
    assert said == overview() + "\n"
    assert {line.split()[0] for line in said.splitlines() if line.startswith("  ") and not line.startswith("    ")} == {
        key.name for section in sections() for key in section.keys if key.name != "type" or not section.variant
    }
    assert max(map(len, said.splitlines())) <= 100


def test_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(explain(capsys, "lr", "--json"))
    assert told["note"] == "Hugging Face's lr is `learning_rate` here"
    assert told["sections"][0]["keys"] == [
        {"path": "pipeline.learning_rate", "type": "number, more than 0", "default": "0.0002", "text": "Peak learning rate.", "swept": True}
    ]  # fmt: skip
    whole = json.loads(explain(capsys, "--json"))
    assert {key["path"] for section in whole["sections"] for key in section["keys"]} == set(KEYS)


def test_schema_and_texts_tell_the_same() -> None:
    properties = file_schema()["$defs"]["SFTConfig"]["properties"]
    assert " ".join(properties["lora_r"]["description"].split()) == KEYS["pipeline.lora_r"].text


def test_the_page_is_what_the_spec_says() -> None:
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == page(), "docs/reference.md is not what the spec says now: write it anew with `make reference`"


def test_the_page_has_whole_tables() -> None:
    widths: list[int] = []
    for line in page().splitlines():
        if not line.startswith("|"):
            widths.clear()
            continue
        widths.append(line.replace("\\|", "").count("|"))
        assert widths[-1] == widths[0]
