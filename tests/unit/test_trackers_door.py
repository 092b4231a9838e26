"""Trackers in the sweep file: what is filled in, what is refused, and that a package which is not here is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_sweeps import FILE

from sweeps.load import load_text
from sweeps.paths import SweepPaths
from sweeps.problems import SpecError
from sweeps.track_rules import PACKAGES, destination, missing, placed
from sweeps.track_spec import MLflowConfig, TensorBoardConfig, WandbConfig


def test_defaults_are_filled_in_at_the_door(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path / "runs" / "qa")
    wrote = [
        TensorBoardConfig(),
        TensorBoardConfig(log_dir="tb"),
        MLflowConfig(),
        MLflowConfig(tracking_uri="sqlite:///a.db", experiment_name="e"),
        MLflowConfig(tracking_uri="./mlruns"),
        MLflowConfig(tracking_uri="databricks"),
        WandbConfig(),
    ]
    found = placed(wrote, tmp_path / "files", paths, {"MLFLOW_TRACKING_URI": "http://there:5000"})
    assert [entry["log_dir"] for entry in found[:2]] == [None, str(tmp_path / "files" / "tb")]
    assert destination(TensorBoardConfig(), paths) == f"event files in {paths.root}/tensorboard"
    uris = ["http://there:5000", f"sqlite:///{tmp_path}/files/a.db", str(tmp_path / "files" / "mlruns"), "databricks"]
    assert [entry["tracking_uri"] for entry in found[2:6]] == uris
    assert [entry["experiment_name"] for entry in found[2:4]] == ["qa", "e"]
    assert found[6]["project"] == "qa"
    assert placed([MLflowConfig()], tmp_path, paths, {})[0]["tracking_uri"] == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert destination(MLflowConfig(**found[3]), paths) == f"sqlite:///{tmp_path}/files/a.db, experiment e"


WRONG = {
    "track: comet": "it is not supported; write 'wandb', 'mlflow' or 'tensorboard'",
    "track: [mlflow, {type: mlflow, experiment_name: b}]": "'mlflow' stands twice",
    "track: {type: mlflow, tracking_uri: 'https://me:word@host'}": "goes into the ledger; export MLFLOW_TRACKING_USERNAME",
    "track: {type: wandb, project: a/b}": "track[0].project",
    "track: {type: tensorboard, logdir: x}": "did you mean 'log_dir'?",
    "storage: s3://bucket/x\ntrack: mlflow": "give tracking_uri",
    "wandb_project: x": "write track: {type: wandb, project: ...}",
}


def sweep_text(tmp_path: Path, more: str) -> bytes:
    (tmp_path / "toy.py").write_text("class Toy: ...\n")
    return (FILE.format(trials=2, seeds="[0]") + more + "\n").encode()


@pytest.mark.parametrize("more", WRONG)
def test_mistakes_are_told_at_the_door(tmp_path: Path, more: str) -> None:
    with pytest.raises(SpecError, match="1 mistake") as caught:
        load_text(sweep_text(tmp_path, more), tmp_path)
    assert WRONG[more] in str(caught.value)


def test_a_package_that_is_not_here_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")
    with pytest.raises(SpecError) as caught:
        load_text(sweep_text(tmp_path, "track: [tensorboard, wandb]"), tmp_path)
    assert "track[1]" in str(caught.value)
    assert "pip install 'stockpot[wandb]'" in str(caught.value)
    (tmp_path / "bare_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "wandb", "bare_folder")
    assert missing("wandb") is not None, "a folder named like the package is none"


def test_one_word_one_mapping_and_a_list_mean_the_same(tmp_path: Path) -> None:
    forms = ("track: wandb", "track: {type: wandb}", "track: [wandb]", "track: [{type: wandb, mode: online}]")
    specs = [load_text(sweep_text(tmp_path, form), tmp_path).spec.track for form in forms]
    assert specs == [specs[0]] * 4
    changed = load_text(sweep_text(tmp_path, "track: wandb"), tmp_path, ["track.0.mode=offline"]).spec.track
    assert changed[0].mode == "offline"
