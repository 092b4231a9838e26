"""What must hold of a sweep that `chaos.py` has hit with faults: its ledger is that of the same sweep in peace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from chaos_cluster import Driver, digest, events_of

from sweeps.events import Event

GROWTH_BYTES = 40 * 2**20
"""What a driver may hold beyond the calm run's, after all those faults."""


def examined(driver: Driver, seen: Sequence[tuple[int, str]], calm: Driver) -> list[str]:
    """What is wrong with a sweep that has ended; nothing where all is well."""
    events, name = events_of(driver.root), driver.root.name
    problems = [f"{name}: {problem}" for problem in untrue(events, results(events_of(calm.root)))]
    for length, told in seen:
        if digest(events[:length]) != (length, told):
            problems.append(f"{name}: the first {length} events are not those that a killed driver had written")
    most, allowed = peak(driver), peak(calm) + GROWTH_BYTES
    if most > allowed:
        problems.append(f"{name}: a driver held {most >> 20} MB; the calm run's held {peak(calm) >> 20}")
    return problems


def untrue(events: Sequence[Event], wanted: dict[tuple[float, int], tuple[Any, ...]]) -> list[str]:
    """What a ledger has that it should not, or lacks.

    Args:
        events: all of them.
        wanted: what `results` gives for a run in peace.
    """
    problems = []
    ends = Counter(event.body["run"] for event in events if event.kind == "run_ended")
    states = Counter(event.body["state"] for event in events if event.kind == "run_ended")
    started = {event.body["run"] for event in events if event.kind == "lease_started"}
    if set(ends) != started or set(ends.values()) != {1} or set(states) != {"finished"}:
        problems.append(f"runs ended {dict(states)}, {len(started)} were started, {len(ends)} have ended")
    twice = Counter((event.body["run"], event.body["resource"]) for event in events if event.kind == "reported")
    problems += [f"{key} was reported {count} times" for key, count in twice.items() if count > 1]
    if (mine := results(events)) != wanted:
        wrong = [key for key in mine.keys() | wanted.keys() if mine.get(key) != wanted.get(key)]
        problems.append(f"{len(wrong)} results are not the calm run's, as {sorted(wrong)[:3]}")
    if [event.kind for event in events].count("sweep_finished") != 1:
        problems.append("it did not finish once")
    return problems


def results(events: Sequence[Event]) -> dict[tuple[float, int], tuple[Any, ...]]:
    """What each configuration reported at each step: the loss, and the state behind it."""
    values = {
        event.body["trial"]: event.body["parameters"]["kwargs.x"] for event in events if event.kind == "suggested"
    }
    found = {}
    for event in events:
        if event.kind == "reported":
            body = event.body
            key = (values[body["run"].partition("/")[0]], body["resource"])
            found[key] = (body["scores"][0]["value"], body["telemetry"]["train/state"])
    return found


def peak(driver: Driver) -> int:
    """The most that a driver of a sweep held, in bytes."""
    return max((max(life) for life in driver.memory if life), default=0)


def false_stalls(drivers: Sequence[Driver], hangs: int) -> list[str]:
    """Stalls beyond the trials that were stopped for good: what is slow, and gets on, is none."""
    kinds = Counter(
        event.body["kind"] for driver in drivers for event in events_of(driver.root) if event.kind == "failed"
    )
    return [f"{kinds['stall']} stalls were told after {hangs} hangs"] if kinds["stall"] > hangs else []
