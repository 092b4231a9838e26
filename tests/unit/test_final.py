"""The final step: one opening of test, nothing done twice, and verdicts that follow from the stored items."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soup_machine import Killed, Stage

from evaluators.statistics import paired
from sweeps.commands.story import final_lines
from sweeps.compare import Source
from sweeps.engine import CallFailed
from sweeps.failures import Failure
from sweeps.final import DATA_ONLY, judge_soup, open_test, run_final
from sweeps.fold import fold
from sweeps.leaderboard import leaderboard
from sweeps.methods import robustness
from sweeps.soup import make_soup
from sweeps.soup_spec import parse_soup

NOISES = [0.9, 0.5, 0.8]
SEEDS = "seeds: {tune: [0], test: [100, 101]}"


def soup(stage: Stage, **config: Any) -> Any:
    made = make_soup(
        stage.loaded,
        stage.ledger,
        stage.paths,
        stage.backend,
        parse_soup({"barrier": False, "top": 3, **config}),
        stage.said.append,
    )
    assert made is not None
    return made


def final(stage: Stage) -> None:
    soups = [soup for soup in fold(stage.ledger.events()).soups.values() if soup.finished is not None]
    newest = next((soup for soup in reversed(soups) if (soup.finished or {}).get("folder")), None)
    run_final(stage.loaded, stage.ledger, stage.paths, stage.backend, newest, stage.said.append)


def test_baseline_winner_and_soup(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    soup(stage)
    final(stage)
    state = fold(stage.ledger.events())
    assert [candidate["role"] for candidate in state.candidates] == ["baseline", "winner", "soup"]
    assert state.candidates[0]["model"] == "org/model"
    assert state.candidates[1]["run"] == stage.runs[1]
    assert not Path(state.candidates[1]["checkpoint"]).is_absolute()
    kinds = [kind for kind, _ in stage.facts() if not kind.startswith("soup_")]
    assert kinds == ["final_frozen", "baseline_scored", "test_opened", *["final_scored"] * 3, *["verdict"] * 3]
    (tuned,) = stage.bodies("baseline_scored")
    assert [score["name"] for score in tuned["scores"]] == ["loss", "exact_match"]
    assert stage.ledger.items(tuned["owner"], 0, "loss", "tune") is not None
    methods = robustness([Source("small", state, stage.ledger, stage.loaded)], "type")
    base = next(score["value"] for score in tuned["scores"] if score["name"] == "loss")
    losses = [state.runs[run].reports[30].scores["tune/loss"].value for run in stage.runs]
    [one] = methods.methods
    assert (one.value, one.beats, one.compared) == ("sft", sum(loss < base for loss in losses), 3)
    assert 0 < one.beats < 3
    (opened,) = stage.bodies("test_opened")
    assert opened == {
        "by": "final",
        "candidates": ["baseline", "winner", "soup"],
        "metrics": ["test/loss", "test/exact_match"],
    }
    assert all(set(body["scores"]) == {"test/loss", "test/exact_match"} for body in state.finals)
    verdicts = {(body["left"], body["right"]): body for body in state.verdicts}
    assert list(verdicts) == [("soup", "winner"), ("winner", "baseline"), ("soup", "baseline")]
    for (left, right), body in verdicts.items():
        a, b = (stage.ledger.items(f"final/{role}", 0, "loss", "test") for role in (left, right))
        assert a is not None
        assert b is not None
        expected = paired(a.values, b.values, a.item_set)
        assert (body["difference"], body["low"], body["high"]) == (expected.difference, expected.low, expected.high)
        assert (body["metric"], body["covers"], body["n"]) == ("test/loss", "data", 40)
        assert body["better"] == ("left" if body["high"] < 0 else "neither")
        assert body["p_holm"] >= body["p"]
    assert verdicts["winner", "baseline"]["better"] == "left"
    assert f"final step: {DATA_ONLY}" in stage.said


def test_done_is_done(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    final(stage)
    facts, asked = stage.facts(), len(stage.backend.calls)
    final(stage)
    assert stage.facts() == facts
    assert len(stage.backend.calls) == asked


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    stage = Stage(tmp_path_factory.mktemp("calm"), NOISES[:2], SEEDS)
    final(stage)
    return stage


@pytest.mark.parametrize("what", ["call", "event"])
@pytest.mark.parametrize("after", range(8))
def test_a_kill_at_any_step_changes_nothing(tmp_path: Path, calm: Stage, what: str, after: int) -> None:
    stage = Stage(tmp_path, NOISES[:2], SEEDS)
    stage.kill(what, after)
    try:
        final(stage)
    except Killed:
        final(stage)
    assert json.dumps(stage.facts()) == json.dumps(calm.facts())


def test_test_seeds_retrain_the_winner(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES, SEEDS)
    soup(stage)
    final(stage)
    trained = [payload for function, payload in stage.backend.calls if function == "sweeps.retrain:train"]
    assert [payload["seed"] for payload in trained] == [100, 101]
    assert all(payload["milestones"] == [10, 30] for payload in trained)
    assert all(payload["config"] == stage.loaded.resolve({"learning_rate": 2e-4}) for payload in trained)
    state = fold(stage.ledger.events())
    assert [(body["role"], body["seed"]) for body in state.finals] == [
        ("baseline", None),
        ("winner", None),
        ("winner", 100),
        ("winner", 101),
        ("soup", None),
    ]
    verdicts = {(body["left"], body["right"]): body for body in state.verdicts}
    assert verdicts["winner", "baseline"]["covers"] == "data and training"
    assert verdicts["winner", "baseline"]["seeds"] == {"left": [100, 101], "right": []}
    assert verdicts["soup", "winner"]["seeds"] == {"left": [], "right": []}
    assert not any(DATA_ONLY in line for line in stage.said)


def test_a_baseline_of_its_own_is_trained(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES, "baseline: {learning_rate: 1.0e-6}")
    final(stage)
    state = fold(stage.ledger.events())
    assert state.candidates[0]["config"]["learning_rate"] == 1e-6
    (payload,) = [payload for function, payload in stage.backend.calls if function == "sweeps.retrain:train"]
    assert payload["config"]["learning_rate"] == 1e-6
    assert (payload["trial"], payload["seed"]) == ("baseline", 0)
    assert [(body["left"], body["right"]) for body in state.verdicts] == [("winner", "baseline")]


def test_no_test_split_opens_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES, test="")
    final(stage)
    assert [kind for kind, _ in stage.facts()] == ["final_frozen", "baseline_scored"]
    assert stage.said[1:] == [
        "final step: pipeline.datasets.test is not given, so test was not opened and nothing judged"
    ]
    final(stage)
    assert [kind for kind, _ in stage.facts()] == ["final_frozen", "baseline_scored"]


def test_nothing_to_judge(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [])
    final(stage)
    assert stage.facts() == []


def test_a_candidate_that_fails_leaves_the_others(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    soup(stage)
    weights = stage.paths.soup("greedy-1")

    def fail(function: str, payload: Mapping[str, Any]) -> None:
        if payload.get("model", {}).get("adapter") == str(weights):
            raise CallFailed(Failure("user", "the adapter does not fit"))

    stage.backend.fail = fail
    final(stage)
    state = fold(stage.ledger.events())
    assert [body["role"] for body in state.finals] == ["baseline", "winner"]
    assert [(body["left"], body["right"]) for body in state.verdicts] == [("winner", "baseline")]
    assert "final step: soup could not be scored: the adapter does not fit" in stage.said
    stage.backend.fail = lambda function, payload: None
    final(stage)
    state = fold(stage.ledger.events())
    assert len(state.verdicts) == 3
    assert state.test_openings == 1


def test_an_unscorable_winner_is_not_a_zero(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    stage.backend.blind = {stage.runs[1]}
    final(stage)
    (body,) = stage.bodies("verdict")
    assert (body["difference"], body["n"], body["better"]) == (None, 0, "neither")


def test_a_later_soup_opens_test_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    final(stage)
    made = soup(stage, method="uniform")
    judge_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, made, stage.said.append)
    state = fold(stage.ledger.events())
    assert state.test_openings == 2
    assert [(body["left"], body["right"]) for body in state.verdicts] == [
        ("winner", "baseline"),
        ("uniform-1", "winner"),
        ("uniform-1", "baseline"),
    ]
    assert [body["role"] for body in state.finals] == ["baseline", "winner", "uniform-1"]
    assert [candidate["role"] for candidate in state.candidates] == ["baseline", "winner", "uniform-1"]
    before = stage.facts()
    judge_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, made, stage.said.append)
    assert stage.facts() == before


ALONE = [9.0, 0.2, 9.0]
"""One good adapter: nothing can be mixed into it without loss."""


@pytest.mark.parametrize("later", [False, True])
def test_a_soup_that_is_the_winner_has_its_scores_and_no_verdict_of_its_own(tmp_path: Path, later: bool) -> None:
    stage = Stage(tmp_path, ALONE)
    if later:
        final(stage)
    made = soup(stage)
    assert [run for run, _ in made.finished["ingredients"]] == [stage.runs[1]]
    for _ in range(2):
        if later:
            judge_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, made, stage.said.append)
        else:
            final(stage)
    state = fold(stage.ledger.events())
    assert state.test_openings == 1
    role = "greedy-1" if later else "soup"
    finals = {body["role"]: body for body in state.finals}
    assert len(state.finals) == 3
    assert finals[role]["scores"] == finals["winner"]["scores"]
    assert finals[role]["owner"] == finals["winner"]["owner"]
    (verdict,) = state.verdicts
    assert (verdict["left"], verdict["right"]) == ("winner", "baseline")
    assert verdict["p_holm"] == verdict["p"]
    said = final_lines(leaderboard(state, stage.ledger, stage.loaded))
    assert any("= best single: nothing else" in line for line in said)


def test_a_soup_of_an_unjudged_sweep_is_judged_with_all(tmp_path: Path) -> None:
    stage = Stage(tmp_path, NOISES)
    made = soup(stage)
    judge_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, made, stage.said.append)
    state = fold(stage.ledger.events())
    assert [body["role"] for body in state.finals] == ["baseline", "winner", "soup"]
    assert state.test_openings == 1


def test_open_test_counts(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [])
    open_test(stage.ledger, "evaluate", ["/a/model"], ["test/loss"])
    assert fold(stage.ledger.events()).test_openings == 1


def test_the_machine_tells_good_from_bad(tmp_path: Path) -> None:
    """The fixture itself: closer to the truth is a lower loss, so that the tests above mean something."""
    stage = Stage(tmp_path, [0.1, 1.0])
    near, far = (stage.ledger.items(run, 30, "loss", "tune") for run in stage.runs)
    assert near is not None
    assert far is not None
    assert np.mean(near.values) < np.mean(far.values)
