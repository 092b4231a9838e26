"""Soups from a sweep: which runs, which events, what lies on disk, and the same decisions after a kill at any step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soup_machine import Killed, Stage, delta

from sweeps.commands.story import soup_lines
from sweeps.engine import CallFailed
from sweeps.failures import Failure
from sweeps.soup import make_soup
from sweeps.soup_spec import parse_soup
from sweeps.state import SoupState

NOISES = [0.9, 0.3, 0.35, 3.0, 0.4]


def make(stage: Stage, **config: Any) -> SoupState | None:
    soup = parse_soup({"barrier": False, "top": 4, **config})
    return make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, soup, stage.said.append)


def test_greedy_soup_end_to_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    soup = make(stage)
    assert soup is not None
    assert soup.finished is not None
    assert soup.id == "greedy-1"
    by_tune = [ingredient["run"] for ingredient in soup.ingredients]
    assert by_tune == [stage.runs[i] for i in (1, 2, 4, 0)]
    folder = stage.paths.root / soup.finished["folder"]
    record = json.loads((folder / "soup.json").read_text())
    mixture = dict(soup.finished["ingredients"])
    assert 2 <= len(mixture) < 5
    expected = sum(
        w * delta(stage.paths.root / "trials" / run / "attempt-0/checkpoint-30") for run, w in mixture.items()
    )
    np.testing.assert_allclose(delta(folder), expected, atol=1e-5)
    assert {entry["run"]: entry["weight"] for entry in record["ingredients"] if entry["weight"]} == mixture
    for entry in record["ingredients"]:
        assert len(entry["hash"]) == 64
        assert entry["select"]["n"] == 40
        assert entry["select"]["se"] > 0
        assert entry["decision"] == ("start" if entry["run"] == next(iter(mixture)) else entry["decision"])
    assert record["chose"] == soup.finished["score"]
    assert record["weights"]["hash"] == soup.finished["hash"]
    assert record["metric"] == "select/loss"
    changes = np.stack(
        [delta(stage.paths.root / "trials" / run / "attempt-0/checkpoint-30").ravel() for run in by_tune]
    )
    alike = record["delta_cosines"]
    assert alike["runs"] == by_tune
    np.testing.assert_allclose(alike["norms"], np.linalg.norm(changes, axis=1), rtol=1e-5)
    unit = changes / np.linalg.norm(changes, axis=1, keepdims=True)
    np.testing.assert_allclose(alike["cosines"], unit @ unit.T, atol=1e-6)
    assert f"| {by_tune[1]} | {alike['norms'][1]:.4g} | {alike['cosines'][1][0]:.2f} | 1.00 |" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    [line] = [line for line in soup_lines(soup, folder) if line.startswith("  deltas")]
    low = min(alike["cosines"][row][column] for row in range(4) for column in range(row))
    assert f"cosines of the changes {low:.2f} to " in line
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "soup.json",
        "README.md",
    }
    singles = [body["score"]["value"] for body in soup.scored if len(body["mixture"]) == 1]
    assert len(singles) == 4
    assert soup.finished["score"]["value"] < min(singles)
    for step, body in enumerate(soup.scored):
        stored = stage.ledger.items(f"soup/greedy-1/{step}", 0, "loss", "select")
        assert stored is not None
        assert float(np.mean(stored.values)) == pytest.approx(body["score"]["value"], rel=1e-6)


def test_uniform_takes_the_top(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    soup = make(stage, method="uniform", top=2)
    assert soup is not None
    assert soup.finished is not None
    assert soup.id == "uniform-1"
    assert dict(soup.finished["ingredients"]) == {stage.runs[1]: 0.5, stage.runs[2]: 0.5}


def test_a_finished_soup_is_not_made_again_but_another_is(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    first = make(stage)
    asked = len(stage.backend.calls)
    assert make(stage) == first
    assert len(stage.backend.calls) == asked
    other = make(stage, tie="reject")
    assert other is not None
    assert other.id == "greedy-2"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    stage = Stage(tmp_path_factory.mktemp("calm"), NOISES)
    assert make(stage) is not None
    return stage


@pytest.mark.parametrize("after", range(14))
def test_a_kill_at_any_step_changes_nothing(tmp_path: Path, calm: Stage, after: int) -> None:
    """Killed before the n-th call and before the n-th event: the events are those of an undisturbed soup."""
    for what in ("call", "event"):
        (tmp_path / what).mkdir()
        stage = Stage(tmp_path / what, NOISES)
        stage.kill(what, after)
        try:
            make(stage)
        except Killed:
            assert make(stage) is not None
        assert normal(stage) == normal(calm)
        assert not list(stage.paths.soup("greedy-1").glob(".work"))


def normal(stage: Stage) -> Any:
    """Events as JSON; nothing in them depends on the test's folder."""
    return json.loads(json.dumps(stage.facts()))


def test_unscorable_and_torn_ingredients_stay_out(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    torn = stage.paths.root / "trials" / stage.runs[1] / "attempt-0/checkpoint-30"
    (torn / "adapter_model.safetensors").write_bytes(b"torn")
    stage.backend.blind = {stage.runs[2]}
    soup = make(stage)
    assert soup is not None
    assert soup.finished is not None
    assert stage.runs[1] not in [ingredient["run"] for ingredient in soup.ingredients]
    assert f"soup: {stage.runs[1]} has no whole checkpoint at 30; passed over" in stage.said
    decision = next(body for body in soup.decisions if body["run"] == stage.runs[2])
    assert (decision["decision"], decision["score"]) == ("reject", None)


def test_only_the_highest_rung_counts(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.5, 0.6])
    stage.add(7, 0.01, resource=10)
    soup = make(stage)
    assert soup is not None
    assert {ingredient["run"] for ingredient in soup.ingredients} == set(stage.runs)


def test_no_soup_of_one(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.5])
    assert make(stage) is None
    assert stage.said == ["no soup: it needs 2 runs at the highest rung, but there is 1"]
    assert stage.facts() == []


def test_refused_ingredients_are_told_and_not_tried_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.5])
    stage.add(1, 0.5, layer_replication=[[0, 1]])
    assert make(stage) is None
    assert "layer_replication" in stage.said[-1]
    (finished,) = stage.bodies("soup_finished")
    assert finished["folder"] == ""
    assert "layer_replication" in finished["reason"]
    asked = len(stage.backend.calls)
    assert make(stage) is None
    assert len(stage.backend.calls) == asked


def test_nothing_scored_is_no_soup(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.5, 0.6])
    stage.backend.blind = {"trials"}
    assert make(stage) is None
    assert stage.said[-1].startswith("no soup: no ingredient could be scored")


def test_a_lost_worker_is_tried_again_and_a_broken_one_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.5, 0.6])
    failures = [Failure("node", "worker lost"), Failure("node", "worker lost")]

    def fail(function: str, payload: Mapping[str, Any]) -> None:
        if failures:
            raise CallFailed(failures.pop())

    stage.backend.fail = fail
    assert make(stage) is not None
    shutil.rmtree(stage.paths.soup("greedy-1"))
    failures += [Failure("oom", "out of memory")]
    with pytest.raises(CallFailed, match="out of memory"):
        make(stage, tie="reject")
