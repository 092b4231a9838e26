"""What happened lately, in a line each: failures, promotions, stops, a new best. Fed with the ledger's events."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sweeps.changes import describe_priority
from sweeps.events import Event
from sweeps.words import waiting_for

KEPT = 20
Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Item:
    """One line of news; `time` in seconds since the epoch."""

    time: float
    text: str
    tone: Tone = "plain"


class News:
    """The newest items, oldest first.

    Attributes:
        items: at most `KEPT`.
        seq: of the newest event taken in.
    """

    def __init__(self) -> None:
        self.items: deque[Item] = deque(maxlen=KEPT)
        self.seq = 0
        self._best: tuple[str, float] | None = None

    def apply(self, event: Event) -> None:
        """Take in one event."""
        self.seq = event.seq
        told = _TELL.get(event.kind, _nothing)(event.body)
        if told is not None:
            text, tone = told
            self.items.append(Item(event.time, text, tone))

    def new_best(self, found: Mapping[str, Any] | None, when: float) -> None:
        """Tell of the best run where it has changed; the one found first is no news.

        Args:
            found: as `sweeps.progress.best` gives it.
            when: seconds since the epoch.
        """
        if found is None:
            return
        now = (found["trial"], found["value"])
        if self._best is not None and now != self._best:
            self.items.append(
                Item(when, f"best is now {number(found['trial'])} with {found['metric']} {found['value']:.4g}", "good")
            )
        self._best = now


def number(run: str) -> str:
    """The short name of a trial or run: `0003`, `0003/seed-1`."""
    trial, _, seed = run.partition("/")
    short = trial.partition("-")[0]
    return f"{short}/{seed}" if seed not in ("", "seed-0") else short


Told = tuple[str, Tone] | None


def _nothing(body: Mapping[str, Any]) -> Told:
    return None


def _failed(body: Mapping[str, Any]) -> Told:
    first = (body["message"].strip().splitlines() or ["no reason was given"])[0]
    if body["final"]:
        return f"{number(body['run'])} failed ({body['kind']}): {first}", "bad"
    changes = ", ".join(f"{name} {value}" for name, value in (body.get("changes") or {}).items())
    again = f"goes again with {changes}" if changes else "goes again"
    return f"{number(body['run'])} {again} ({body['kind']}): {first}", "bad"


def _adjusted(body: Mapping[str, Any]) -> Told:
    changes = ", ".join(f"{name} {value}" for name, value in body["changes"].items())
    return f"{number(body['run'])} begins with {changes}: {body['reason']}", "plain"


def _leased(body: Mapping[str, Any]) -> Told:
    if body.get("why") != "promoted":
        return None
    return f"{number(body['run'])} was promoted from {body['from_resource']}", "plain"


def _decided(body: Mapping[str, Any]) -> Told:
    if body.get("action") != "continue" or "target" not in body:
        return None
    return f"{number(body['run'])} goes on from {body['resource']} to {body['target']}", "plain"


def _stop(body: Mapping[str, Any]) -> Told:
    by = {
        "ctrl-c": "Ctrl-C",
        "command": "stockpot stop",
        "budget": "its hours",
        "same-error": "too many equal failures",
    }
    return f"asked to stop by {by.get(body['by'], body['by'])}", "bad"


def _held_back(body: Mapping[str, Any]) -> Told:
    return None if body["by"] is None else (f"waiting: {waiting_for(body)}", "plain")


def _driver(body: Mapping[str, Any]) -> Told:
    return f"driver pid {body['pid']} on {body['host']} began", "plain"


def _priority(body: Mapping[str, Any]) -> Told:
    return f"priority {describe_priority(**body)}", "plain"


def _driver_ended(body: Mapping[str, Any]) -> Told:
    why = f", {body['why']}" if body.get("why") else ""
    return f"driver ended: {body['reason']}{why}", "plain"


def _soup(body: Mapping[str, Any]) -> Told:
    return f"soup {body['soup']} began with {len(body['ingredients'])} runs", "plain"


def _soup_finished(body: Mapping[str, Any]) -> Told:
    if not body["ingredients"]:
        return f"no soup: {body.get('reason') or 'none could be made'}", "plain"
    return f"soup {body['soup']} is made of {len(body['ingredients'])}", "good"


def _frozen(body: Mapping[str, Any]) -> Told:
    return f"final step: {', '.join(str(candidate['role']) for candidate in body['candidates'])}", "plain"


_TELL = {
    "failed": _failed,
    "adjusted": _adjusted,
    "lease_started": _leased,
    "decided": _decided,
    "held_back": _held_back,
    "stop_requested": _stop,
    "driver_started": _driver,
    "priority_changed": _priority,
    "driver_ended": _driver_ended,
    "soup_started": _soup,
    "soup_finished": _soup_finished,
    "final_frozen": _frozen,
}
