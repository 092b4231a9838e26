"""Numbers in words for people: durations, how far a sweep is, its best so far, the time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STAGES = {
    "starting": "a driver is starting",
    "stopping": "stopping",
    "soup": "making the soup",
    "final": "in the final step",
}
"""What a line adds in the stages that are not plain running."""

UNITS = {"rag": "questions", "custom": "units"}
"""Pipeline -> what its resource counts; `steps` of all that train."""


def unit_of(pipeline: str) -> str:
    """What a pipeline's resource counts, in the plural."""
    return UNITS.get(pipeline, "steps")


def duration(seconds: float) -> str:
    """`12 s`, `3:05`, `2:03:05`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def age(seconds: float) -> str:
    """One unit: `12 s`, `3 min`, `2 h`, `5 d`."""
    seconds = max(0.0, seconds)
    for size, unit in ((60, "s"), (60, "min"), (24, "h")):
        if round(seconds) < (size if unit != "h" else 48):
            return f"{round(seconds)} {unit}"
        seconds /= size
    return f"{round(seconds)} d"


def describe_best(found: Mapping[str, Any] | None) -> str:
    """`best tune/loss 0.2301 ± 0.0120 (0003-ab12cd34 at 30)`; with several metrics the size of the front as well."""
    if found is None:
        return "no result yet"
    error = f" ± {found['se']:.2g}" if found.get("se") is not None else ""
    front = f", {found['front']} on the front" if "front" in found else ""
    seeds = f", {found['seeds']} seeds" if "seeds" in found else ""
    return f"best {found['metric']} {found['value']:.4g}{error} ({found['trial']} at {found['resource']}{seeds}){front}"


def describe_trials(shot: Mapping[str, Any]) -> str:
    """`5/6 trials, 1 running, 1 failed`."""
    trials = shot["trials"]
    total = f"/{trials['total']}" if trials["total"] is not None else ""
    parts = [f"{trials['tried']}{total} trials", f"{trials['running']} running"]
    if trials.get("unplaced"):
        parts.append(f"{trials['unplaced']} without a place")
    if trials["failed"]:
        parts.append(f"{trials['failed']} failed")
    if shot["state"] in STAGES:
        parts.append(STAGES[shot["state"]])
    return ", ".join(parts)


def share_done(shot: Mapping[str, Any]) -> float | None:
    """Part of the resource that is spent, of that and what is still to come; None when no end is known."""
    done, expected, ahead = shot["resource"]["done"], shot["resource"]["expected"], shot.get("ahead")
    if expected and ahead is not None:
        return float(done / (done + ahead)) if done + ahead else 1.0
    return min(1.0, done / expected) if expected else None


def outlook(shot: Mapping[str, Any], now: float) -> str:
    """`ETA 8:10 (5:00 to 12:00), then soup and final step`; `ETA -` before anything is known.

    Args:
        shot: a snapshot; its `eta` counts from its `at`.
        now: seconds since the epoch.
    """
    found = shot.get("eta")
    trials = shot["trials"]
    if shot.get("ahead") == 0 and trials["tried"] and not trials["running"]:
        return f"the trials are over, {shot['then']} next"
    if found is None:
        return "ETA -"
    since = max(0.0, now - shot["at"])
    left, low, high = (max(0.0, found[key] - since) for key in ("seconds", "low", "high"))
    text = f"ETA {_coarse(left)}"
    if found["by"] == "hours":
        text += " (the budget's hours)"
    elif duration(low) != duration(high):
        text += f" ({_coarse(low)} to {_coarse(high)})"
    return text + (f", then {shot['then']}" if shot.get("then") else "")


def _coarse(seconds: float) -> str:
    """A time that nobody knows to the second: `8 s`, `3:10`, `12 min`, `2 h 20 min`."""
    if seconds < 1:
        return "now"
    if seconds < 60:
        return f"{round(seconds)} s"
    if seconds < 600:
        return duration(round(seconds, -1))
    minutes = round(seconds / 60) if seconds < 3600 else 10 * round(seconds / 600)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest and hours < 24 else f"{hours} h"


def waiting_for(held_back: Mapping[str, Any]) -> str:
    """What slots stand empty for: `sweep b (priority 5) goes first`, or that all places are taken."""
    if not held_back["by"]:
        return "trials have no place on the cluster yet"
    return f"sweep {held_back['by']} (priority {held_back['priority']}) goes first"
