"""`resume --budget`: what it may say, what it asks of a sweep, and a second round that follows from the first."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plans import FINITE, LINE, backend, plan
from soup_machine import Stage, load

from sweeps.budget import BudgetError, asked_for, change, describe, finalists, read_settings
from sweeps.commands.story import final_lines
from sweeps.events import Event
from sweeps.final import run_final
from sweeps.fold import fold
from sweeps.leaderboard import leaderboard
from sweeps.ledger import Ledger
from sweeps.load import from_record
from sweeps.replay import differences
from sweeps.simulate import Killed, drive, kill_at
from sweeps.state import items_owner
from sweeps.trial import Run
from sweeps.verdicts import family


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trials=40"], {"trials": 40}),
        (["trials=40,hours=8"], {"trials": 40, "hours": 8.0}),
        (["trials=40", "hours=0.5"], {"trials": 40, "hours": 0.5}),
        (["trials=40", "trials=50"], {"trials": 50}),
        (["hours=none"], {"hours": None}),
        ([], {}),
    ],
)
def test_settings(arguments: list[str], expected: dict[str, Any]) -> None:
    assert read_settings(arguments) == expected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("40", "takes trials=N or hours=H, but got '40'"),
        ("trails=40", "did you mean 'trials'?"),
        ("trials=0", "whole number from 1 up, but got '0'"),
        ("trials=4.5", "whole number from 1 up"),
        ("hours=-1", "a number above 0"),
        ("hours=nan", "a number above 0"),
        ("hours=inf", "a number above 0"),
        ("trials=4,", "takes trials=N or hours=H"),
    ],
)
def test_mistaken_settings(argument: str, message: str) -> None:
    with pytest.raises(BudgetError, match="--budget") as caught:
        read_settings([argument])
    assert message in str(caught.value)


def budgeted(before: Any, after: Any) -> dict[str, Any]:
    """The event that turns one plan into the other."""

    def limits(one: Any) -> dict[str, Any]:
        budget = {"trials": one.spec.budget.trials, "hours": one.spec.budget.hours}
        return {"budget": budget, "trials": one.spec.budget.trials, "finalists": one.finalists}

    return {**limits(after), "before": limits(before)}


def suggested(root: Path) -> list[Any]:
    return [event.body["parameters"] for event in Ledger.read(root).events() if event.kind == "suggested"]


@pytest.mark.parametrize(
    ("method", "stop"), [("random", "none"), ("random", "asha"), ("tpe", "none"), ("grid", "none")]
)
def test_two_rounds_ask_for_what_one_long_sweep_asks_for(tmp_path: Path, method: str, stop: str) -> None:
    space = FINITE if method == "grid" else LINE
    few, many = (plan(trials=n, method=method, stop=stop, space=space) for n in (3, 6))
    drive(many, tmp_path / "long", backend(tmp_path / "long"))
    root, simulated = tmp_path / "rounds", backend(tmp_path / "rounds")
    drive(few, root, simulated)
    assert len(suggested(root)) == 3
    drive(many, root, simulated, budget=budgeted(few, many))
    assert suggested(root) == suggested(tmp_path / "long")
    events = list(Ledger.read(root).events())
    assert differences(many, events) == []
    without = [event for event in events if event.kind != "budget_changed"]
    assert any("no more trials were to come" in line for line in differences(few, without))


def test_trials_that_a_closed_rung_stopped_wait_again_and_may_go_on(tmp_path: Path) -> None:
    few, many = plan(trials=9, total=27), plan(trials=15, total=27, finalists=7)
    root, simulated = tmp_path, backend(tmp_path)
    drive(few, root, simulated)
    before = fold(Ledger.read(root).events())
    stopped = {run.id for run in before.runs.values() if run.phase == "stopped"}
    assert stopped
    for run in stopped:
        for held in simulated.checkpoints.listed(Run.parse(run)):
            simulated.checkpoints.delete(held)
    drive(many, root, simulated, budget=budgeted(few, many))
    events = list(Ledger.read(root).events())
    after = fold(events)
    assert len(after.trials) == 15
    assert sum(run.phase == "finished" for run in after.runs.values()) >= 7
    revived = {run for run in stopped if max(after.runs[run].reports) > max(before.runs[run].reports)}
    assert revived, "none of the old trials went on, so nothing was tested"
    assert all(after.runs[run].attempt > before.runs[run].attempt for run in revived), "its checkpoint was gone"
    for run in stopped:
        for resource, report in before.runs[run].reports.items():
            assert after.runs[run].reports[resource].scores == report.scores
    assert differences(many, events) == []


@pytest.mark.parametrize("seed", range(12))
def test_killed_in_the_second_round_it_decides_as_an_uninterrupted_one(tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)
    few = plan(trials=5, method=choice.choice(["random", "tpe"]), total=9)
    many = plan(trials=11, method=few.spec.method.type, total=9, finalists=2)
    told = []
    for name in ("plain", "killed"):
        root, simulated, happened = tmp_path / name, backend(tmp_path / name), 0
        drive(few, root, simulated)
        body: dict[str, Any] | None = budgeted(few, many)
        for _ in range(3 if name == "killed" else 0):
            try:
                drive(many, root, simulated, kill_at(1 + choice.randrange(12), choice.random() < 0.5), body)
                break
            except Killed:
                happened += 1
                body = None
        drive(many, root, simulated, budget=body)
        events = list(Ledger.read(root).events())
        assert differences(many, events) == []
        assert sum(event.kind == "budget_changed" for event in events) == 1
        assert happened or name == "plain"
        kinds = ("suggested", "reported", "decided", "run_ended")
        keys = ("trial", "run", "resource", "action", "reason", "parameters", "state", "scores")
        told.append([(e.kind, {k: e.body[k] for k in keys if k in e.body}) for e in events if e.kind in kinds])
    assert told[0] == told[1]


def test_hours_that_cut_a_sweep_short_can_be_lengthened(tmp_path: Path) -> None:
    hours = [{"trials": 6, "hours": h} for h in (0.002, 1.0)]
    few, many = (plan(budget=budget, total=9) for budget in hours)
    simulated = backend(tmp_path, seconds=lambda config: 1.0)
    drive(few, tmp_path, simulated)
    before = fold(Ledger.read(tmp_path).events())
    assert before.stop == "budget"
    assert any(run.phase == "stopped" for run in before.runs.values())
    drive(many, tmp_path, simulated, budget=budgeted(few, many))
    after = fold(Ledger.read(tmp_path).events())
    assert len(after.trials) == 6
    assert any(run.phase == "finished" for run in after.runs.values())
    assert not any("hours" in run.reason for run in after.runs.values())
    assert after.seconds_used > before.seconds_used > 0


def test_time_between_drivers_is_nobodys(tmp_path: Path) -> None:
    ledger, now = Ledger.create(tmp_path), [100.0]
    ledger.clock = lambda: now[0]
    ledger.append([Event("sweep_created", {"name": "s", "spec": {}, "versions": {}, "space": {}})])
    ledger.append([Event("driver_started", {})])
    now[0] = 160.0
    ledger.append([Event("driver_ended", {"reason": "finished"})])
    now[0] = 9000.0
    ledger.append([Event("test_opened", {"by": "evaluate", "candidates": [], "metrics": []})])
    assert fold(ledger.events()).seconds_used == 60.0
    now[0] = 9100.0
    ledger.append([Event("driver_started", {})])
    assert fold(ledger.events()).spent == 60.0
    ledger.close()


class TestDoor:
    """`change`: what a begun sweep can't be given."""

    def state(self, trials: int = 8, finished: bool = True, hours: float = 0.1, stop: str | None = None) -> Any:
        known = {str(n): SimpleNamespace(duplicate_of=None) for n in range(trials)}
        runs = {"a": SimpleNamespace(phase="stopped")}
        over = {"trials": trials} if finished else None
        return SimpleNamespace(
            trials=known, searched=known, runs=runs, finished=over, seconds_used=3600 * hours, stop=stop
        )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"trials": 7}, "8 trials have begun, so trials must be at least 8, but got 7"),
            ({"trials": 8}, "is finished with 8 trials, so there is nothing to add"),
            ({"hours": 4.0}, "is finished with 8 trials, so there is nothing to add"),
            ({"trials": 20, "hours": 0.05}, "0.1 h are used up"),
            ({"trials": None}, "would have no end"),
        ],
    )
    def test_refused(self, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(BudgetError) as caught:
            change(load(tmp_path), self.state(), settings)
        assert message in str(caught.value)

    def test_a_larger_one(self, tmp_path: Path) -> None:
        loaded = load(tmp_path)
        body = change(loaded, self.state(), {"trials": 30})
        assert body is not None
        assert body["budget"] == {"trials": 30, "hours": None}
        assert body["before"]["budget"] == {"trials": 8, "hours": None}
        assert describe(body) == "30 trials (8 before)"
        again = from_record(fold_spec(loaded, body))
        assert (again.trials, again.spec.budget.trials, again.finalists) == (30, 30, 4)

    def test_an_unfinished_sweep_may_have_less_and_what_it_has_changes_nothing(self, tmp_path: Path) -> None:
        loaded = load(tmp_path)
        body = change(loaded, self.state(trials=3, finished=False), {"trials": 5})
        assert body is not None
        assert body["trials"] == 5
        assert change(loaded, self.state(trials=3, finished=False), {"trials": 8}) is None

    def test_hours_that_ended_it_can_be_lengthened_alone(self, tmp_path: Path) -> None:
        loaded = load(tmp_path, more="")
        body = change(loaded, self.state(stop="budget"), {"hours": 9.0})
        assert body is not None
        assert describe(body) == "8 trials, 9 hours"

    def test_a_space_that_is_used_up(self, tmp_path: Path) -> None:
        loaded = load(tmp_path)
        finite = plan(space=FINITE).space
        used = replace(loaded, space=finite, spec=loaded.spec.model_copy())
        with pytest.raises(BudgetError, match="all 6 configurations have been tried"):
            change(used, self.state(trials=6), {"trials": 40})


def fold_spec(loaded: Any, body: dict[str, Any]) -> Any:
    record = {"name": "small", "spec": loaded.record(), "versions": {}, "space": {}}
    return fold([Event("sweep_created", record), Event("budget_changed", body)]).spec


def test_default_finalists_grow_with_the_trials(tmp_path: Path) -> None:
    spec = plan(trials=4).spec
    rule = spec.early_terminate.model_copy(update={"finalists": None})
    wide = spec.model_copy(update={"early_terminate": rule, "soup": load(tmp_path).spec.soup})
    assert [finalists(wide, n) for n in (2, 4, 8, 40, None)] == [1, 2, 4, 4, 4]
    assert asked_for(spec, None) == 4
    assert asked_for(spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": None})}), 6) == 6


def more(stage: Stage) -> None:
    """The sweep is given another budget: a round begins."""
    body = change(stage.loaded, fold(stage.ledger.events()), {"trials": 30})
    assert body is not None
    stage.ledger.append([Event("driver_started", {}), Event("budget_changed", body)])


def judge(stage: Stage) -> Any:
    run_final(stage.loaded, stage.ledger, stage.paths, stage.backend, None, stage.said.append)
    return fold(stage.ledger.events())


def test_the_same_winner_is_not_scored_again_and_its_test_counts_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.9, 0.5, 0.8])
    first = judge(stage)
    scored = stage.backend.count("sweeps.worker:evaluate")
    more(stage)
    between = fold(stage.ledger.events())
    assert (between.candidates, between.finals, between.verdicts) == ([], [], [])
    assert [done.verdicts for done in between.earlier] == [first.verdicts]
    second = judge(stage)
    assert stage.backend.count("sweeps.worker:evaluate") == scored
    assert second.test_openings == 1
    assert second.verdicts == first.verdicts
    assert [items_owner(final) for final in second.finals] == ["final/baseline", "final/winner"]
    board = leaderboard(second, stage.ledger, stage.loaded)
    assert board.tests == 1
    assert board.verdicts[0]["p_holm"] == board.verdicts[0]["p"]


def test_another_winner_opens_test_again_and_all_tests_are_allowed_for(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.9, 0.5, 0.8])
    first = judge(stage)
    more(stage)
    better = stage.add(3, 0.2)
    second = judge(stage)
    assert [c.get("run") for c in second.candidates] == [None, better]
    assert second.test_openings == 2
    assert [items_owner(final) for final in second.finals] == ["final-2/baseline", "final-2/winner"]
    (old,), (new,) = first.verdicts, second.verdicts
    assert new["difference"] != old["difference"]
    assert new["p_holm"] == pytest.approx(min(1.0, 2 * min(new["p"], old["p"])), rel=1e-6) or new["p"] > old["p"]
    board = leaderboard(second, stage.ledger, stage.loaded)
    assert (board.tests, len(board.verdicts), len(board.earlier)) == (2, 1, 1)
    lines = "\n".join(final_lines(board))
    assert "an earlier final step, after 3 trials" in lines
    assert "test was opened 2 times for 2 verdicts" in lines
    assert stage.ledger.items("final/winner", 0, "loss", "test") is not None


def test_a_test_that_came_up_twice_is_one() -> None:
    one = {
        "left": "winner",
        "right": "baseline",
        "metric": "test/loss",
        "difference": 1.0,
        "se": 0.1,
        "p": 0.01,
        "n": 9,
    }
    other = {**one, "p": 0.02, "difference": 0.5}
    assert family([one, one, other], [other]) == [one, other]
