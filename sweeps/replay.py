"""Whether a ledger's decisions follow from its events: every one is made again from what stood before it, and compared.

Holds for any number of slots, through kills and resumes: the recorded order is the only input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sweeps.events import Event
from sweeps.fitting import lowered
from sweeps.plan import Plan
from sweeps.rulings import follower, on_report, promotion
from sweeps.schedulers import build_scheduler
from sweeps.schedulers.base import ItemReader, no_items
from sweeps.searchers import build_searcher
from sweeps.standings import Standings
from sweeps.trial import canonical, finite


def differences(plan: Plan, events: Iterable[Event], items: ItemReader = no_items) -> list[str]:
    """One line a suggestion, promotion or ruling that does not follow from the events before it; empty when all do.

    Args:
        plan: the loaded sweep.
        events: of its ledger.
        items: reads item scores, for schedulers that compare items.
    """
    return _Replay(plan, items).run(events)


class _Replay:
    def __init__(self, plan: Plan, items: ItemReader) -> None:
        self._plan = plan
        self._searcher = build_searcher(plan.spec.method, plan.space, [metric.direction for metric in plan.metrics])
        self._scheduler = build_scheduler(plan.spec.early_terminate, plan.milestones, plan.finalists)
        self._standings = Standings(plan, self._scheduler.milestones, self._searcher.finite)
        self._standings.items = items
        self._due: tuple[str, Mapping[str, Any]] | None = None
        self._found: list[str] = []

    def run(self, events: Iterable[Event]) -> list[str]:
        events = list(events)
        first = next((event.body["before"] for event in events if event.kind == "budget_changed"), None)
        if first is not None:
            self._standings.set_trials(first["budget"]["trials"])
            self._finalists(first)
        for event in events:
            if event.kind == "budget_changed":
                self._finalists(event.body)
            if event.kind == "suggested":
                self._suggestion(event)
            elif event.kind == "decided":
                self._decision(event)
            elif event.kind == "adjusted":
                self._adjustment(event)
            elif event.kind == "lease_started":
                self._lease(event)
            elif self._due is not None and event.kind != "reported":
                self._say(event, f"no decision about {self._due[0]} before it")
            known = event.kind == "reported" and self._known(event)
            self._standings.apply(event)
            if event.kind == "reported" and not known:
                self._report(event)
        return self._found

    def _finalists(self, body: Mapping[str, Any]) -> None:
        rule, milestones = self._plan.spec.early_terminate, self._plan.milestones
        self._scheduler = build_scheduler(rule, milestones, body["finalists"])

    def _known(self, event: Event) -> bool:
        run = self._standings.state.runs[event.body["run"]]
        if event.body["resource"] in run.reports:
            self._say(event, f"{run.id} had reported {event.body['resource']} before")
            return True
        return event.body["attempt"] < run.attempt

    def _suggestion(self, event: Event) -> None:
        if event.body.get("baseline") is not None:
            return
        if not self._standings.more_to_come:
            self._say(event, "no more trials were to come")
        if promotion(self._standings, self._scheduler) or follower(self._standings):
            self._say(event, "a new trial although a run could be promoted")
        made = self._searcher.suggest(self._standings.suggestions, self._standings.history())
        if made is None or canonical(made.choices) != canonical(event.body["choices"]):
            self._say(event, f"suggested {event.body['choices']}, again {made.choices if made else None}")

    def _report(self, event: Event) -> None:
        run, resource = self._standings.state.runs[event.body["run"]], event.body["resource"]
        if resource not in self._standings.milestones_of(run.trial) or resource > run.target:
            return
        vector = self._standings.vector(run, resource)
        if vector is None or not all(map(finite, vector)):
            return
        ruling = on_report(self._standings, self._scheduler, run, resource)
        expected = {"action": "continue" if ruling.goes_on else "stop", "resource": resource, "reason": ruling.reason}
        self._due = run.id, expected | ({"target": ruling.target} if ruling.target is not None else {})

    def _decision(self, event: Event) -> None:
        body = {key: value for key, value in event.body.items() if key != "run"}
        if self._due is not None:
            expected, self._due = self._due, None
            if expected != (event.body["run"], body):
                self._say(event, f"decided {dict(event.body)}, again {expected}")
        elif body["action"] == "promote":
            chosen = promotion(self._standings, self._scheduler)
            if chosen is None or (chosen.run.id, chosen.resource, chosen.target) != (
                event.body["run"],
                body["resource"],
                body["target"],
            ):
                self._say(event, f"promoted {event.body['run']} at {body['resource']}, again {chosen}")
        elif "checkpoint" not in body:
            self._say(event, "a decision without a report")

    def _adjustment(self, event: Event) -> None:
        state = self._standings.state
        run, _, _ = event.body["run"].partition("/seed-")
        before = state.runs[event.body["run"]].changes if event.body["run"] in state.runs else {}
        less = lowered({**state.trials[run].config, **before}, state.too_large)
        if less is None or (less.after, {**before, **less.changes}) != (event.body["after"], event.body["changes"]):
            self._say(event, f"adjusted {dict(event.body)}, again {less}")

    def _lease(self, event: Event) -> None:
        state, name = self._standings.state, event.body["run"]
        if self._plan.spec.on_failure.oom != "stop" and not (name in state.runs and state.runs[name].reports):
            config = state.trials[name.partition("/seed-")[0]].config
            less = lowered({**config, **(event.body.get("changes") or {})}, state.too_large)
            if less is not None:
                self._say(event, f"{name} begins larger than what {less.after} ran out of memory with")
        if event.body.get("why") == "seed":
            chosen = promotion(self._standings, self._scheduler) or follower(self._standings)
            if chosen is None or (chosen.run.id, chosen.target) != (event.body["run"], event.body["target"]):
                self._say(event, f"leased seed {event.body['run']}, again {chosen}")

    def _say(self, event: Event, text: str) -> None:
        self._found.append(f"event {event.seq} ({event.kind}): {text}")
