"""A distillation at the door: its choices, its rules, students that are cuts of a base model."""

from pathlib import Path

import pytest
from sweep_files import SFT, load, problems
from tiny import save_model

from pipelines.config import DistillConfig, parse_pipeline
from sweeps.dryrun import dry_run, machines
from sweeps.footprint import checkpoint_bytes

DISTILL = SFT.replace("type: sft", "type: distill").replace(
    "  learning_rate", "  teacher: owner/teacher\n  learning_rate"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of 4 layers and a teacher of 3."""
    place = tmp_path_factory.mktemp("models")
    save_model(place / "base", layers=4)
    save_model(place / "teacher", layers=3)
    return place


def real(models: Path, text: str = DISTILL) -> str:
    return text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(models / "base")).replace(
        "owner/teacher", str(models / "teacher")
    )


def test_losses_are_choices_with_parameters_of_their_own(tmp_path: Path) -> None:
    space = """\
parameters:
  loss: {choose: {kl: {temperature: [1, 2]}, jsd: {beta: [0.1, 0.5, 0.9]}}}
  hidden: {choose: {none: {}, mi_alpha: {alpha: [0.1, 1], layer_map: [skip, last, [[0, 1]]]}}}
  hard_weight: [0, 1]
"""
    loaded = load(tmp_path, DISTILL + space)
    assert loaded.space.size == (2 + 3) * (1 + 6) * 2
    config = loaded.resolve(
        {"loss.type": "jsd", "loss.beta": 0.9, "hidden.type": "mi_alpha", "hidden.layer_map": [[0, 1]]}
    )
    typed = parse_pipeline(config)
    assert isinstance(typed, DistillConfig)
    assert typed.loss.model_dump() == {"type": "jsd", "weight": 1.0, "beta": 0.9, "temperature": 1.0}
    assert typed.hidden.type == "mi_alpha"
    assert typed.hidden.layer_map == ((0, 1),)
    assert typed.adapter == "none"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("loss: {type: kd}", "'kd' is unknown (jsd, kl, none)"),
        ("loss: {type: kl, beta: 0.5}", "'beta' is unknown"),
        ("loss: {type: jsd, beta: 1.5}", "1.5"),
        ("hidden: {type: pkd}", "it is 'cosine' here: distances of vectors of length 1"),
        ("hidden: {type: mse, layer_map: emd}", "the earth mover's map is not supported"),
        ("hidden: {type: mse, layer_map: [[0, 1], [0, 2]]}", "names a layer of the student twice"),
        ("hidden: {type: mse, layer_map: []}", "is empty"),
        ("{loss: {type: none}, hard_weight: 0}", "nothing would be learnt"),
        ("{teacher: [a/b, c/d], hidden: {type: mse}}", "an ensemble has none; take one teacher"),
        ("{teacher: sweep://x/top-2, hidden: {type: mse}}", "an ensemble has none; take one teacher"),
        ("teacher: ./nowhere", "is not there"),
        ("teacher: [owner/name, ./nowhere]", "is not there"),
        ("teacher: []", "is empty; name a model"),
        ("teacher_model_name_or_path: owner/name", "TRL's teacher_model_name_or_path is `teacher` here"),
        ("{adapter: lora, keep_layers: 2}", "its base would lie nowhere; write adapter: none"),
        ("keep_layers: [2, 1]", "is not ascending"),
        ("keep_layers: []", "is empty"),
        ("keep_layers: 0", "0"),
    ],
)
def test_mistakes_are_told_before_anything_starts(tmp_path: Path, key: str, said: str) -> None:
    import yaml

    changed = yaml.safe_load(DISTILL)
    given = yaml.safe_load(key)
    changed["pipeline"] |= given
    assert any(said in line for line in problems(tmp_path, yaml.safe_dump(changed)).values())


@pytest.mark.parametrize(
    ("key", "place", "said"),
    [
        ("keep_layers: 5", "keep_layers", "5 layers are to be kept, but the model has 4"),
        ("keep_layers: [0, 4]", "keep_layers", "there is no layer 4"),
        ("hidden: {type: mse, layer_map: last}", "hidden.layer_map", "it has 3 and the student 4"),
        ("hidden: {type: mse, layer_map: [[0, 3]]}", "hidden.layer_map", "the teacher has no layer 3"),
        (
            "{keep_layers: 2, hidden: {type: mse, layer_map: [[2, 0]]}}",
            "hidden.layer_map",
            "the student has no layer 2",
        ),
    ],
)
def test_layers_that_are_not_there_are_told_by_the_headers(
    tmp_path: Path, models: Path, key: str, place: str, said: str
) -> None:
    import yaml

    changed = yaml.safe_load(real(models))
    changed["pipeline"] |= yaml.safe_load(key)
    assert said in problems(tmp_path, yaml.safe_dump(changed))[f"pipeline.{place}"]


def test_a_cut_is_the_base_model_of_its_trials_and_of_their_baseline(tmp_path: Path, models: Path) -> None:
    text = real(models) + "parameters: {keep_layers: [2, 3, [0, 3]]}\nbaseline: {keep_layers: 1, loss: {type: none}}\n"
    loaded = load(tmp_path, text)
    found = [loaded.resolve({"keep_layers": keep}) for keep in (2, [0, 3])]
    assert [config["base_model"] for config in found] == [f"layers://{keep}/{models / 'base'}" for keep in ("2", "0,3")]
    assert [parse_pipeline(config).starts_from for config in found] == [config["base_model"] for config in found]
    assert loaded.resolve_baseline()["base_model"] == f"layers://1/{models / 'base'}"
    again = loaded.resolve({**found[0], "keep_layers": 3})
    assert again["base_model"] == f"layers://3/{models / 'base'}"
    plain = load(tmp_path, real(models)).resolve({})
    assert plain["base_model"] == str(models / "base")


def test_check_counts_the_teacher_and_the_cut(tmp_path: Path, models: Path) -> None:
    def seen(keys: str) -> dict[str, int]:
        keys += "  micro_batch_size: 64\n  eval_batch_size: 1\n"
        loaded = load(tmp_path, real(models).replace("  learning_rate", f"{keys}  learning_rate"))
        found = dry_run(loaded, machines(None))
        assert found["memory"]["reason"] is None
        return found["memory"]["largest"]["items"] | {"disk": found["disk"]["checkpoint"]}

    whole, none = seen(""), seen("  loss: {type: none}\n")
    teacher = 4 * parameters(models / "teacher")
    assert (whole["teacher"], none.get("teacher")) == (teacher, None)
    assert whole["logits"] > 2 * none["logits"]
    cut = seen("  keep_layers: 2\n")
    assert cut["weights"] < whole["weights"]
    assert cut["disk"] < whole["disk"]
    compared = seen("  hidden: {type: mi_alpha}\n")
    assert compared["beside"] == 12 * 4 * 32 * 32


def parameters(folder: Path) -> int:
    from pipelines.finetune.shape import read_shape

    return read_shape(str(folder)).parameters


def test_a_cuts_checkpoint_is_a_whole_model(tmp_path: Path, models: Path) -> None:
    from pipelines.finetune.shape import read_shape

    config = parse_pipeline(
        load(tmp_path, real(models) + "parameters: {keep_layers: [2]}\n").resolve({"keep_layers": 2})
    )
    shape = read_shape(config.starts_from)
    assert shape.layers == 2
    assert checkpoint_bytes(config, shape) == (4 * shape.parameters, 12 * shape.parameters)
