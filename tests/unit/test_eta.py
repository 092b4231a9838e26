"""The estimate of the time left, held to sweeps whose end is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_sweeps import events_of, seen_at, simulate

from sweeps.describe import describe
from sweeps.eta import Estimate, ahead, estimate
from sweeps.load import load_text
from sweeps.words import outlook


@pytest.mark.parametrize(("slots", "spread"), [(1, 0.0), (2, 10.0), (4, 10.0), (4, 40.0)])
def test_the_end_lies_in_the_range(tmp_path: Path, slots: int, spread: float) -> None:
    """Of all moments after the first fifth, in nine of ten; and the estimate is off by a third of the time left at most."""
    loaded = simulate(tmp_path, trials=40, slots=slots, spread=spread)
    events = events_of(loaded, slots)
    end = max(event.time for event in events)
    held, off = [], []
    for count in range(len(events) // 5, len(events) - 4, 3):
        state, view, now = seen_at(loaded, events[:count], late=0.0)
        found = view.shot["eta"]
        if found is None or state.stop is not None or end - now < 60:
            continue
        held.append(found["low"] - 1 <= end - now <= found["high"] + 1)
        off.append(abs(found["seconds"] - (end - now)) / (end - now))
        assert found["low"] <= found["seconds"] <= found["high"]
    assert len(held) > 20
    assert sum(held) >= 0.9 * len(held), f"{sum(held)} of {len(held)}"
    assert sorted(off)[len(off) // 2] < 0.34, sorted(off)[len(off) // 2]


def test_what_is_to_come_falls_to_nothing(tmp_path: Path) -> None:
    loaded = simulate(tmp_path)
    events = events_of(loaded)
    rungs = describe(loaded)["rungs"]
    state, _, _ = seen_at(loaded, events[:2])
    left = ahead(state, loaded, rungs)
    assert left.begun == 0
    assert left.planned >= describe(loaded)["resource"]
    state, view, _ = seen_at(loaded, events)
    assert ahead(state, loaded, rungs).units == 0
    assert view.shot["eta"] is None or view.shot["eta"]["high"] < 1


def test_a_plan_that_fewer_reached_leaves_nothing_to_come_once_all_have_ended(tmp_path: Path) -> None:
    """A race whose configurations left sooner than was planned for."""
    loaded = simulate(tmp_path)
    rungs = describe(loaded)["rungs"]
    hoped = [rungs[0], *({**rung, "runs": rung["runs"] + 5} for rung in rungs[1:])]
    state, _, _ = seen_at(loaded, events_of(loaded))
    state.stop = None
    assert ahead(state, loaded, hoped).units == 0


def test_hours_bound_the_estimate(tmp_path: Path) -> None:
    loaded = simulate(tmp_path)
    events = events_of(loaded)
    state, _, now = seen_at(loaded, events[: len(events) // 2])
    rungs = describe(loaded)["rungs"]
    free = estimate(state, loaded, rungs, now)
    assert free is not None
    assert free.by == "work"
    short = load_text(
        b"name: short\npipeline: {type: custom, import_path: 'toy:Toy', total: 81, metrics: {loss: minimize}, kwargs: {x: 1}}\n"
        b"parameters: {kwargs.x: {min: 0.0, max: 1.0}}\nmetric: loss\nbudget: {hours: 0.2}\n",
        tmp_path,
    )
    left = 0.2 * 3600 - (now - state.driver_started_at)
    assert estimate(state, short, None, now) == Estimate(left, left, left, "hours")


def test_a_first_trial_that_tells_where_it_is_gives_an_estimate(tmp_path: Path) -> None:
    loaded = simulate(tmp_path)
    state, _, _ = seen_at(loaded, events_of(loaded)[:6])
    rungs = describe(loaded)["rungs"]
    (run, *_) = [run for run in state.runs.values() if run.phase == "running"]
    lacking = ahead(state, loaded, rungs).begun
    run.moved(1, run.heard + 30)
    assert ahead(state, loaded, rungs).begun == lacking - 1
    found = estimate(state, loaded, rungs, run.heard + 30)
    assert found is not None
    assert found.seconds >= 30 * ahead(state, loaded, rungs).begun / len(state.runs)


def test_nothing_is_claimed_before_anything_is_known(tmp_path: Path) -> None:
    loaded = simulate(tmp_path)
    _, view, now = seen_at(loaded, events_of(loaded)[:6])
    assert view.shot["eta"] is None
    assert outlook(view.shot, now) == "ETA -"


def test_the_outlook_counts_down() -> None:
    shot = {"eta": {"seconds": 600.0, "low": 300.0, "high": 5400.0, "by": "work"}, "at": 100.0, "then": "final step"}
    shot |= {"trials": {"tried": 3, "running": 1}, "ahead": 90}
    assert outlook(shot, 100.0) == "ETA 10 min (5:00 to 1 h 30 min), then final step"
    assert outlook(shot, 395.0) == "ETA 5:00 (5 s to 1 h 30 min), then final step"
    shot["eta"] = {"seconds": 60.0, "low": 60.0, "high": 60.0, "by": "hours"}
    assert outlook(shot, 110.0) == "ETA 50 s (the budget's hours), then final step"
    assert outlook(shot, 160.0).startswith("ETA now")
    shot |= {"trials": {"tried": 3, "running": 0}, "ahead": 0}
    assert outlook(shot, 110.0) == "the trials are over, final step next"


def test_a_run_that_is_overdue_is_not_said_to_end_at_once(tmp_path: Path) -> None:
    """Finalists that write answers after all others have ended: for minutes it was said to be three seconds."""
    loaded = simulate(tmp_path, trials=6, slots=1)
    events = events_of(loaded, 1)
    rungs = describe(loaded)["rungs"]
    count = max(n for n in range(len(events)) if events[n].kind == "reported")
    state, _, now = seen_at(loaded, events[:count], late=0.0)
    assert [run.phase for run in state.runs.values()].count("running") == 1

    def left(late: float) -> float:
        found = estimate(state, loaded, rungs, now + late)
        assert found is not None
        return found.seconds

    due = left(0.0)
    assert left(due / 2) == pytest.approx(due / 2)
    assert left(due + 120.0) == pytest.approx(120.0)
