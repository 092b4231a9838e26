"""When each lease ran: spans by slot, with the hours cut out in which no driver was at work.

The ledger has no slots. Leases are laid into lanes as they started, each into the first free one, so that the lanes are
as many as ran at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps.events import Event

BREAK = 60.0
"""Seconds between two drivers from which a break is drawn."""


@dataclass
class Span:
    """A stretch of work. Times are seconds since the epoch; `end` is None while it goes on."""

    kind: str
    name: str
    start: float
    end: float | None = None
    how: str = "running"
    from_resource: int = 0
    why: str = ""
    lane: int = 0


@dataclass
class _Reader:
    spans: list[Span] = field(default_factory=list)
    running: dict[str, Span] = field(default_factory=dict)
    breaks: list[tuple[float, float]] = field(default_factory=list)
    last: float = 0.0

    def read(self, event: Event) -> None:
        body = event.body
        if event.kind == "driver_started":
            self.close_all(self.last, "interrupted")
            if self.last and event.time - self.last > BREAK:
                self.breaks.append((self.last, event.time))
        elif event.kind == "lease_started":
            span = Span("lease", body["run"], event.time, from_resource=body.get("from_resource") or 0)
            span.why = body.get("why") or ""
            self.running[body["run"]] = span
            self.spans.append(span)
        elif event.kind == "lease_ended":
            self.close(body["run"], event.time, body.get("reason") or "stopped")
        elif event.kind == "failed":
            self.close(body["run"], event.time, "failed")
        elif event.kind == "soup_started":
            self.begin("soup", body["soup"], event.time)
        elif event.kind == "soup_finished":
            self.close(f"soup:{body['soup']}", event.time, "finished")
        elif event.kind == "final_frozen":
            self.begin("final", "final step", event.time)
        elif event.kind in ("verdict", "final_scored", "sweep_finished") and "final:final step" in self.running:
            self.running["final:final step"].end = event.time
            if event.kind == "sweep_finished":
                self.close("final:final step", event.time, "finished")
        elif event.kind == "driver_ended":
            self.close_all(event.time, "interrupted")
        self.last = event.time

    def begin(self, kind: str, name: str, when: float) -> None:
        span = Span(kind, name, when)
        self.running[f"{kind}:{name}"] = span
        self.spans.append(span)

    def close(self, key: str, when: float, how: str) -> None:
        span = self.running.pop(key, None)
        if span is not None:
            span.end, span.how = when, how

    def close_all(self, when: float, how: str) -> None:
        for key in list(self.running):
            final = key.startswith("final:") and self.running[key].end is not None
            self.close(key, self.running[key].end if final else when, "finished" if final else how)  # type: ignore[arg-type]


def timeline(events: Sequence[Event], driven: bool) -> dict[str, Any]:
    """JSON-ready: `spans` with seconds since the first event, breaks taken out; `breaks` where they were; `lanes`.

    Args:
        events: the ledger's.
        driven: whether a driver is at work now; else what still runs ended with the last event.
    """
    reader = _Reader()
    for event in events:
        reader.read(event)
    if not events:
        return {"spans": [], "breaks": [], "lanes": 0, "seconds": 0.0}
    if not driven:
        reader.close_all(reader.last, "interrupted")
    began = events[0].time

    def working(when: float) -> float:
        lost = sum(min(when, end) - start for start, end in reader.breaks if when > start)
        return round(when - began - lost, 2)

    ends: list[float] = []
    for span in reader.spans:
        if span.kind != "lease":
            continue
        end = reader.last if span.end is None else span.end
        span.lane = next((lane for lane, free in enumerate(ends) if free <= span.start + 1e-6), len(ends))
        ends[span.lane : span.lane + 1] = [end]
    return {
        "spans": [
            {
                "kind": span.kind,
                "name": span.name,
                "start": working(span.start),
                "end": None if span.end is None else working(span.end),
                "how": span.how,
                "from": span.from_resource,
                "why": span.why,
                "lane": span.lane,
            }
            for span in reader.spans
        ],
        "breaks": [{"at": working(start), "seconds": round(end - start)} for start, end in reader.breaks],
        "lanes": len(ends),
        "seconds": working(reader.last),
    }
