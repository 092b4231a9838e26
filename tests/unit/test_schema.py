"""The JSON Schema for editors: what `check` accepts it accepts, and what no file may say it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from mutations import SEEDS, mutated
from sweep_files import CUSTOM, SFT, folder_with_data
from test_examples_load import BLOCKS, EXAMPLES

from sweeps import cli
from sweeps.load import load_text
from sweeps.parameters import parse
from sweeps.problems import SpecError
from sweeps.schema import file_schema
from sweeps.yaml_source import read

SCHEMA = file_schema()
VALIDATOR = Draft7Validator(SCHEMA)
OPEN = ("parameters.kwargs", "metric", "soup.metric")
"""Where words are those of a pipeline of one's own."""


def wrong(text: str | bytes) -> list[str]:
    """What the schema has against a file."""
    document = read(text if isinstance(text, bytes) else text.encode())
    assert document.problems == []
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in VALIDATOR.iter_errors(document.data)
    ]


def test_it_is_a_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)
    text = json.dumps(SCHEMA)
    references = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    for reference in references:
        place: Any = SCHEMA
        for word in reference.removeprefix("#/").split("/"):
            place = place[word]
    assert len(text) < 900_000


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    assert wrong(path.read_bytes()) == []


@pytest.mark.parametrize(("name", "text"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_blocks_of_the_pages_are_valid(name: str, text: str) -> None:
    assert wrong(text) == []


@pytest.mark.parametrize("text", SEEDS)
def test_files_with_everything_are_valid(text: str) -> None:
    assert wrong(text) == []


def test_a_file_that_init_wrote_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_with_data(tmp_path))
    assert cli.main(["init", "sft", "data/train.jsonl"]) == 0
    assert wrong((tmp_path / "sweep.yaml").read_bytes()) == []


def test_what_the_door_accepts_the_schema_accepts(tmp_path: Path) -> None:
    """Over damaged files: nothing that `check` passes is marked by an editor; all unknown words of the spec are."""
    folder_with_data(tmp_path)
    accepted = unknown = marked = 0
    for text in mutated(400):
        try:
            loaded = load_text(text.encode(), tmp_path)
        except SpecError as error:
            words = [problem.place for problem in error.problems if "is unknown" in problem.message]
            document = read(text.encode())
            if not document.problems and any(not place.startswith(OPEN) for place in words):
                unknown += 1
                marked += not VALIDATOR.is_valid(document.data)
            continue
        accepted += 1
        document = read(text.encode())
        for path in loaded.space.paths:  # what is swept is never used as written, and the door does not read it
            document.data["pipeline"].pop(path.partition(".")[0], None)
        assert list(VALIDATOR.iter_errors(document.data)) == [], text
    assert accepted > 15
    assert marked == unknown > 50


FREE = SFT.replace("  base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n", "")
PARAMETERS = [
    "{learning_rate: [1e-4, 1e-3]}",
    "{pipeline.learning_rate: {min: 1e-5, max: 1e-3}}",
    "{pipeline: {learning_rate: {min: 1e-5, max: 1e-3, distribution: log_uniform_values}}}",
    "{lora_r: {values: [8, 16]}, lora_alpha: {value: 16}, warmup_ratio: {min: 0, max: 0.3, q: 0.1, distribution: q_uniform}}",
    "{lora_target_modules: [[q_proj, v_proj], all-linear]}",
    "{datasets.train.limit: [10, 20], datasets: {tune: {fraction: [0.1, 0.2]}}}",
    "{datasets: {train: {limit: {min: 10, max: 20}}}}",
    "{adapter: {choose: {lora: {lora_r: [8]}, none:}}}",
    "{together: {a: [{lora_r: 8, lora_alpha: 16}, {lora_r: 16, lora_alpha: 32}]}}",
    "{datasets.on_duplicate: {choose: {error:, drop_train: {on_bad_row: [stop, skip]}}}}",
]


@pytest.mark.parametrize("space", PARAMETERS)
def test_every_form_of_parameters_is_valid(space: str, tmp_path: Path) -> None:
    document = read(f"parameters: {space}".encode())
    from pipelines.config import SFTConfig

    parse(document, document.data["parameters"], [SFTConfig])
    assert document.problems == []
    assert wrong(f"{SFT}parameters: {space}\nbudget: {{trials: 2}}\n") == []


@pytest.mark.parametrize(
    "line",
    [
        "metric: loss", "metric: {name: loss}", "metric: [loss, {name: cost/seconds, goal: minimize}]", "method: tpe",
        "method: {type: gp, seed: 3}", "early_terminate: none", "early_terminate: {type: asha, min: 3}", "soup: greedy",
        "soup: {top: 3}", "evaluate: [exact_match, {type: json_fields, when: final}]", "seeds: {tune: [0, 1], test: []}",
        "resources: {cpus: auto, gpus: 0.5}", "keep: {best: 3}", "stall_after: 60", "budget: {hours: 0.5}",
        "env: {HF_TOKEN: '${HF_TOKEN}'}", "baseline: {learning_rate: 1e-4, datasets.train.limit: 10, lora_r: 4}",
        "baseline: {pipeline: {datasets: {train: {limit: 5}}}}",
    ],
)  # fmt: skip
def test_short_and_long_forms_are_valid(line: str) -> None:
    assert wrong(SFT.replace("metric: loss\n", "" if line.startswith("metric") else "metric: loss\n") + line) == []


@pytest.mark.parametrize(
    "line",
    [
        "methd: tpe", "method: tpee", "method: {type: tpe, sed: 1}", "method: {seed: 1}", "method: {type: tpe, n_startup_trials: 0}",
        "early_terminate: asha", "early_terminate: {type: asha, min: 3, eta: 1}", "early_terminate: {type: asha}",
        "soup: greed", "soup: {topp: 3}", "evaluate: [exact]", "evaluate: exact_match", "evaluate: [{when: final}]",
        "evaluate: [{type: exact_match, wen: final}]", "seeds: {tun: [0]}", "seeds: {tune: []}", "seeds: {tune: 0}",
        "resources: {gpus: many}", "keep: {best: 0}", "budget: {trials: twelve}", "budget: {trial: 12}", "env: {A: 1}",
        "parameters: {learning_rat: [1e-4]}", "parameters: {learning_rate: 1e-4}", "parameters: {learning_rate: {min: 1e-5}}",
        "parameters: {lora_r: [eight]}", "parameters: {lora_target_modules: [q_proj]}", "parameters: {type: [sft, custom]}",
        "parameters: {lora_r: {min: 1, max: 2, distribution: loguniform}}", "parameters: {datasets: {trian: {limit: [1]}}}",
        "parameters: {adapter: {min: 1, max: 2}}", "parameters: {adapter: {choose: {lorra: {}}}}", "parameters: {lora_r: []}",
        "parameters: {adapter: {choose: {lora: {lora_rr: [1]}}}}", "parameters: {together: {a: [{lora_rr: 8}]}}",
        "baseline: {learning_rat: 1}", "metric2: loss", "name: 'a b'",
    ],
)  # fmt: skip
def test_mistakes_are_marked(line: str) -> None:
    key = line.split(":")[0]
    whole = "\n".join(one for one in SFT.splitlines() if not one.startswith(f"{key}:"))
    assert wrong(f"{whole}\n") == [] or key == "name"
    assert wrong(f"{whole}\n{line}\n")


@pytest.mark.parametrize("metric", ["[]", "1", "{nam: loss}", "[loss, 2]", "{name: loss, goal: up}"])
def test_wrong_metrics_are_marked(metric: str) -> None:
    assert wrong(SFT.replace("metric: loss", f"metric: {metric}"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  max_steps: 27", "  max_step: 27"),
        ("type: prompt_completion}\n    tune", "type: prompt_completin}\n    tune"),
        ("fraction: 0.1}\n    select", "fractoin: 0.1}\n    select"),
        ("path: data/train.jsonl", "path: data/train.jsonl, field_promt: q"),
        ("learning_rate: 2.0e-4", "learning_rate: -1"),
        ("  type: sft\n", ""),
        ("type: sft", "type: sftt"),
        ("name: demo\n", ""),
    ],
)
def test_mistakes_inside_the_pipeline_are_marked(old: str, new: str) -> None:
    assert old in SFT
    assert wrong(SFT.replace(old, new))


def test_what_parameters_give_need_not_stand_in_the_pipeline() -> None:
    assert wrong(FREE)
    assert wrong(FREE + "parameters: {lora_r: [8]}\n")
    for key in ("base_model", "pipeline.base_model"):
        assert wrong(FREE + f"parameters: {{{key}: [a/b, a/c]}}\n") == []
    assert wrong(CUSTOM.replace("total: 27, ", ""))
    assert (
        wrong(CUSTOM.replace("total: 27, ", "") + "parameters: {total: [27], kwargs.x: [1], kwargs: {y: {z: [2]}}}")
        == []
    )


def test_the_command_writes_it_and_overwrites_only_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
    for _ in range(2):
        assert cli.main(["schema", "-o", "s.json"]) == 0
    assert "# yaml-language-server: $schema=./s.json" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text()) == SCHEMA
    (tmp_path / "sweep.yaml").write_text("name: mine")
    assert cli.main(["schema", "-o", "sweep.yaml"]) == 2
    assert (tmp_path / "sweep.yaml").read_text() == "name: mine"
    assert cli.main(["schema", "--help"]) == 0
    assert "yaml-language-server" in capsys.readouterr().out
