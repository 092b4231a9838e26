"""Two checkpoints compared: cosine, CKA, the straight path, a trained curve; and what can't be compared says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sft_runs import config, make_place, run
from tiny import save_model, sums, write_rows

from evaluators.base import Example
from pipelines.config import DataFile, SFTConfig
from pipelines.soups.cosines import delta_cosines
from pipelines.soups.curve import Curve
from pipelines.soups.diagnosis import Diagnosis, Side, halves
from pipelines.soups.similarity import spread
from pipelines.splits import read_rows
from pipelines.stage import Devices, UserError
from sweeps.cli import main


class Place:
    """Two LoRA trials and two full ones of a tiny model, a net that began elsewhere, and rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_place(folder)
        self.base = folder / "model"
        self.trials = {}
        for name, changed in {
            "lora-1": {"lora_r": 4},
            "lora-2": {"lora_r": 2, "learning_rate": 0.02},
            "full-1": {"adapter": "none", "learning_rate": 0.001},
            "full-2": {"adapter": "none", "learning_rate": 0.002},
        }.items():
            run(config(folder, **changed), folder / name)
            self.trials[name] = folder / name / "checkpoint-8"
        self.trials["elsewhere"] = save_model(folder / "elsewhere", seed=1)
        file = DataFile(path=str(write_rows(folder / "rows.jsonl", sums(16, 40))), type="prompt_completion")
        self.rows = list(read_rows(file))
        self.config = SFTConfig.model_validate(
            {"base_model": str(self.base), "datasets": {"train": file}, "max_steps": 1, "sequence_len": 32}
        )

    def side(self, name: str) -> Side:
        return Side(name, self.trials[name], None if name == "elsewhere" else str(self.base))

    def record(self, left: str, right: str, rows: list[Example] | None = None, **more: Any) -> dict[str, Any]:
        found = Diagnosis(
            self.side(left),
            self.side(right),
            self.config,
            self.rows if rows is None else rows,
            str(self.folder / "cache"),
            Devices(1, 0),
        ).record(**more)
        return json.loads(json.dumps(found, allow_nan=False))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("diagnosis"))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_trials_of_one_base(place: Place, kind: str) -> None:
    found = place.record(f"{kind}-1", f"{kind}-2")
    folders = [place.trials[f"{kind}-1"], place.trials[f"{kind}-2"]]
    cosines = delta_cosines(folders, str(place.base))
    assert cosines is not None
    assert found["deltas"]["cosine"] == pytest.approx(cosines["cosines"][0][1])
    assert found["rows"] == 16
    layers = found["cka"]["layers"]
    assert len(layers) == 3
    assert layers[0] == pytest.approx(1.0, abs=0.01 if kind == "full" else 1e-9)
    assert 0.6 < min(layers) <= max(layers) <= 1 + 1e-9
    path = found["path"]
    assert [knot[0] for knot in path["knots"]][:: len(path["knots"]) - 1] == [0.0, 1.0]
    assert all(knot[2] > 0 for knot in path["knots"])
    assert path["barrier"] < 0.05
    assert abs(path["mc"]) < 0.1
    assert "curve" not in found


def test_a_checkpoint_and_itself_are_one(place: Place) -> None:
    found = place.record("lora-1", "lora-1")
    assert found["deltas"]["cosine"] == pytest.approx(1.0)
    assert found["cka"]["layers"] == pytest.approx([1.0] * 3)
    assert found["path"]["barrier"] == pytest.approx(0.0, abs=1e-5)
    assert found["path"]["mc"] == pytest.approx(0.0, abs=1e-5)


def test_nets_that_began_apart_are_parted_by_a_barrier(place: Place) -> None:
    """Both learn the rows, each from its own beginning: halfway between them all is lost, and there is no one base."""
    for name, base in (("near", place.base), ("far", place.trials["elsewhere"])):
        settings = config(place.folder, base_model=str(base), adapter="none", learning_rate=0.005, max_steps=40)
        run(settings, place.folder / name, (40,))
        place.trials[name] = place.folder / name / "checkpoint-40"
    rows = list(read_rows(DataFile(path=str(place.folder / "train.jsonl"), type="prompt_completion")))
    found = place.record("near", "far", rows=rows)
    path = found["path"]
    assert max(path["knots"][0][1], path["knots"][-1][1]) < 2.5
    assert not path["passes"]
    assert path["barrier"] > 0.5
    assert path["mc"] < -0.5
    assert "do not have one base model" in found["deltas"]["missing"]
    assert found["cka"]["layers"][-1] < 0.95


def test_what_can_not_be_compared_says_why(place: Place, tmp_path: Path) -> None:
    found = place.record("lora-1", "full-1")
    assert found["deltas"] == {"missing": "lora-1 is an adapter and full-1 is a full model"}
    assert found["path"]["missing"] == "lora-1 is an adapter and full-1 is a full model"
    assert [knot[0] for knot in found["path"]["ends"]] == [0.0, 1.0]
    assert len(found["cka"]["layers"]) == 3
    found = place.record("lora-1", "lora-2", rows=[])
    assert found["path"] == found["cka"] == {"missing": "it needs rows"}
    assert "cosine" in found["deltas"]
    place.trials["other-base"] = place.folder / "other-base"
    if not place.trials["other-base"].exists():
        place.trials["other-base"].mkdir()
        for file in place.trials["lora-1"].iterdir():
            (place.trials["other-base"] / file.name).write_bytes(file.read_bytes())
        state = json.loads((place.trials["other-base"] / "state.json").read_text())
        (place.trials["other-base"] / "state.json").write_text(json.dumps({**state, "base_hash": "f" * 64}))
    found = place.record("lora-1", "other-base")
    for what in ("deltas", "path"):
        assert "do not have one base model" in found[what]["missing"]
        assert "other-base" in found[what]["missing"]


def test_other_tokenizers_and_broken_weights_are_refused(place: Place, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other")
    body = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps({**body, "version": "1.0 "}))
    place.trials["other"] = other
    with pytest.raises(UserError, match="elsewhere and other have different tokenizers"):
        place.record("elsewhere", "other")
    from safetensors.torch import load_file, save_file

    place.trials["broken"] = save_model(tmp_path / "broken")
    tensors = load_file(tmp_path / "broken/model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, tmp_path / "broken/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"broken holds NaN or infinite numbers in model\.norm\.weight"):
        place.record("elsewhere", "broken")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_curve_begins_as_the_straight_line_and_training_moves_only_its_bend(place: Place, kind: str) -> None:
    folders = [place.trials[f"{kind}-1"], place.trials[f"{kind}-2"]]
    straight = {knot[0]: knot[1] for knot in place.record(f"{kind}-1", f"{kind}-2")["path"]["knots"]}
    curve = Curve(place.config.model_copy(update={"base_model": str(place.base)}), folders)
    for t in (0.0, 0.5, 1.0):
        assert curve.score(t, place.rows).value == pytest.approx(straight[t], rel=1e-5)
    losses = curve.train(place.rows, steps=30, learning_rate=0.01)
    assert len(losses) == 30
    for t in (0.0, 1.0):
        assert curve.score(t, place.rows).value == pytest.approx(straight[t], rel=1e-5)
    assert curve.score(0.5, place.rows).value < straight[0.5] - 0.05


def test_a_curve_is_trained_on_one_half_and_measured_on_the_other(place: Place) -> None:
    trained, measured = halves(place.rows)
    assert {row.group for row in trained}.isdisjoint(row.group for row in measured)
    found = place.record("full-1", "full-2", curve_steps=3, curve_rate=1e-3)
    assert found["rows"] == len(measured) == 16 - found["curve"]["trained_on"]
    assert found["curve"]["steps"] == 3
    assert {knot[0] for knot in found["curve"]["knots"]} >= {0.0, 0.5, 1.0}


def test_tokens_are_spread_evenly() -> None:
    assert spread([3, 3], 3) == [[0, 2], [1]]
    assert spread([2, 0, 3], 10) == [[0, 1], [], [0, 1, 2]]
    assert sum(map(len, spread([100] * 30, 64))) == 64


def test_the_command_prints_a_table_or_json(place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pair = [str(place.trials["lora-1"]), str(place.trials["lora-2"])]
    rows = ["--data", str(place.folder / "rows.jsonl"), "--storage", str(tmp_path)]
    assert main(["diagnose", *pair, *rows, "--limit", "6"]) == 0
    out = capsys.readouterr().out
    for words in (
        "deltas  cosine of the changes",
        "cka     linear, of",
        "  layers 0-2",
        "  0.500",
        "  barrier ",
        "  mc ",
    ):
        assert words in out
    assert main(["diagnose", *pair, "--storage", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["on"] is None
    assert found["path"] == {"missing": "it needs rows"}
    assert main(["diagnose", *pair, "--curve", "5", "--storage", str(tmp_path)]) == 2
    assert "--curve is trained on rows" in capsys.readouterr().err
    assert main(["diagnose", *pair, "--data", "sweep://x/test", "--storage", str(tmp_path)]) == 2
    assert "test is for verdicts" in capsys.readouterr().err
    assert main(["diagnose", "sweep://nowhere/best", pair[0], "--storage", str(tmp_path)]) == 2
    assert "nowhere" in capsys.readouterr().err
