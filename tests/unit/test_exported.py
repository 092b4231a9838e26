"""The numbers that a cluster's monitoring gets, counted again from the events themselves."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from simulated_sweeps import events_of, simulate

from cluster.meters import Meters, Number
from sweeps.events import Event
from sweeps.exported import PHASES, numbers
from sweeps.fold import fold
from sweeps.load import LoadedSweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedSweep, list[Event]]:
    loaded = simulate(tmp_path_factory.mktemp("exported"), trials=24)
    return loaded, events_of(loaded)


def told(loaded: LoadedSweep, events: list[Event]) -> dict[tuple[str, str], Number]:
    """The numbers by name and by the label beside `sweep`."""
    found = {}
    for number in numbers(fold(events), loaded):
        assert number.tags["sweep"] == "gsm8k-lora"
        (label,) = [value for key, value in number.tags.items() if key != "sweep"] or [""]
        assert (number.name, label) not in found
        found[number.name, label] = number
    return found


def value_of(event: Event) -> float:
    (score,) = [score for score in event.body["scores"] if (score["split"], score["name"]) == ("tune", "loss")]
    return float("nan") if score["value"] is None else float(score["value"])


@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_they_are_what_the_events_add_up_to(swept: tuple[LoadedSweep, list[Event]], share: float) -> None:
    loaded, events = swept
    events = events[: math.ceil(len(events) * share)]
    found = told(loaded, events)
    trials = {event.body["trial"] for event in events if event.kind == "suggested"}
    assert found["stockpot_trials", ""].value == len(trials) > 0
    assert found["stockpot_slots", ""].value == 4
    kinds = Counter(event.body["kind"] for event in events if event.kind == "failed")
    assert {kind: int(n.value) for (name, kind), n in found.items() if name == "stockpot_failures"} == dict(kinds)
    phases = {phase: found["stockpot_runs", phase].value for phase in PHASES}
    assert sum(phases.values()) == len(fold(events).runs)
    reported = [event for event in events if event.kind == "reported"]
    newest = {event.body["run"]: event.body["attempt"] for event in events if event.kind == "lease_started"}
    counted = {(e.body["run"], e.body["resource"]) for e in reported if e.body["attempt"] <= newest[e.body["run"]]}
    assert found["stockpot_reports", ""].value == len(counted)


def test_the_best_is_that_of_the_highest_rung_and_the_end_has_nothing_running(
    swept: tuple[LoadedSweep, list[Event]],
) -> None:
    loaded, events = swept
    found = told(loaded, events)
    assert (found["stockpot_runs", "running"].value, found["stockpot_runs", "waiting"].value) == (0, 0)
    assert found["stockpot_failures", "user"].value > 0, "the sweep has failures to be counted"
    top = [event for event in events if event.kind == "reported" and event.body["resource"] == 81]
    best = min(value_of(event) for event in top if math.isfinite(value_of(event)))
    assert found["stockpot_best", "tune/loss"].value == pytest.approx(best)


def test_counters_are_named_as_such_and_names_are_prometheus_own(swept: tuple[LoadedSweep, list[Event]]) -> None:
    found = told(*swept)
    assert {name for (name, _), number in found.items() if number.counter} == {"stockpot_reports", "stockpot_failures"}
    assert all(name.replace("_", "").isalpha() and number.about for (name, _), number in found.items())


class Written:
    """What a counter or gauge of Ray's would hold."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.calls = 0

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.calls += 1
        self.total[tags["sweep"]] = self.total.get(tags["sweep"], 0.0) + value

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.calls += 1
        self.total[tags["sweep"]] = value


class Kept(Meters):
    """Meters that hand numbers to `Written` in place of Ray."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: dict[str, Written] = {}

    def _meter(self, number: Number) -> Written:
        return self.by_name.setdefault(number.name, Written())


def test_a_counter_gets_what_was_added_and_a_gauge_what_is() -> None:
    meters = Kept()
    for reports, running in ((1.0, 2.0), (1.0, 2.0), (4.0, 0.0), (4.0, 1.0)):
        for sweep in ("a", "b"):
            tags = {"sweep": sweep}
            counter = Number("reports", reports, "", tags, counter=True)
            meters.show([counter, Number("running", running, "", tags)])
    assert meters.by_name["reports"].total == {"a": 4.0, "b": 4.0}
    assert meters.by_name["running"].total == {"a": 1.0, "b": 1.0}
    assert (meters.by_name["reports"].calls, meters.by_name["running"].calls) == (4, 6), "only what has changed"
