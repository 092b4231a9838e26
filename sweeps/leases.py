"""Leases: who runs next, from where, and how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sweeps.checkpoints import Checkpoint, Checkpoints, newest_whole
from sweeps.failures import Failure, classify
from sweeps.fitting import lowered
from sweeps.journal import Journal
from sweeps.keep import Keeper
from sweeps.plan import Plan
from sweeps.rulings import Promotion, follower, promotion
from sweeps.schedulers.base import Scheduler
from sweeps.searchers.base import Searcher, Suggestion
from sweeps.standings import Standings
from sweeps.trial import Attempt, Lease, Run, trial_id


@dataclass
class Held:
    """A lease that a backend executes now.

    Attributes:
        lease: as handed out.
        origin: the checkpoint it started from.
        heard: when it last reported, or began.
        moved: when it last gave a sign of life, a report or less.
        stopped: whether it was told to stop; its slot is busy until the backend says that it ended.
    """

    lease: Lease
    origin: Checkpoint | None
    heard: float
    moved: float = float("-inf")
    stopped: bool = False


class LeaseDesk:
    """Hands out leases, in this order: runs that must go again, the baseline that is a trial, promotions, other seeds of finished trials, new trials.

    Args:
        plan: the loaded sweep.
        standings: the sweep as the ledger has it.
        journal: where lease events are staged.
        searcher: suggests new trials.
        scheduler: picks promotions.
        checkpoints: where leases start from.
        keeper: is told of torn checkpoints.
        on_invalid: is told of suggestions that make no configuration, once staged.
    """

    def __init__(
        self,
        plan: Plan,
        standings: Standings,
        journal: Journal,
        searcher: Searcher,
        scheduler: Scheduler,
        checkpoints: Checkpoints,
        keeper: Keeper,
        on_invalid: Callable[[Run, Failure], None],
    ) -> None:
        self._plan = plan
        self._standings = standings
        self._journal = journal
        self._searcher = searcher
        self._scheduler = scheduler
        self._checkpoints = checkpoints
        self._keeper = keeper
        self._on_invalid = on_invalid
        self._milestones: dict[str, tuple[int, ...]] = {}
        interrupted = [run for run in standings.state.runs.values() if run.phase in ("interrupted", "running")]
        self._again = [run.id for run in sorted(interrupted, key=lambda run: (run.order, run.seed))]

    @property
    def empty(self) -> bool:
        """Whether nothing can be handed out, now that nothing runs."""
        if self._again or self._standings.more_to_come or self._standings.baseline_seed is not None:
            return False
        return promotion(self._standings, self._scheduler) is None and follower(self._standings) is None

    def again(self, run: str) -> None:
        """A run goes again when a slot is free, before everything else."""
        self._again.append(run)

    def next(self, now: float) -> Held | None:
        """The next lease, staged but not written; None when there is nothing for now.

        Those that wait are looked at again when no new trial came: that nothing more is to come may let one go on.
        """
        if self._again:
            return self._go_again(Run.parse(self._again.pop(0)), now)
        return self._baseline(now) or self._waiting(now) or self._new_trial(now) or self._waiting(now)

    def _baseline(self, now: float) -> Held | None:
        """The next run of a baseline that is a trial: straight to its total."""
        seed, state = self._standings.baseline_seed, self._standings.state
        if seed is None:
            return None
        config = self._plan.resolve_baseline()
        assert config is not None, "a baseline with a name must change something"
        milestones = self._plan.milestones_of(config)
        if state.baseline is None:
            name = self._plan.spec.named_baseline
            own = Suggestion(parameters={}, choices={})
            self._stage_suggestion(trial_id(0, config), config, milestones, own, None, 0, name)
        trial = state.baseline
        assert trial is not None, "the baseline was just suggested"
        return self._grant(Run(trial.id, seed), 0, milestones[-1], None, now, why="baseline")

    def _waiting(self, now: float) -> Held | None:
        chosen = promotion(self._standings, self._scheduler) or follower(self._standings)
        return None if chosen is None else self._promote(chosen, now)

    def _go_again(self, run: Run, now: float) -> Held:
        state = self._standings.state.runs[run.id]
        start = newest_whole(self._checkpoints, run, state.target, self._keeper.torn)
        return self._grant(run, state.attempt + 1, state.target, start, now, why="again")

    def _promote(self, chosen: Promotion, now: float) -> Held:
        state = self._standings.state.runs.get(chosen.run.id)
        if not chosen.seed:
            body = {"run": chosen.run.id, "resource": chosen.resource, "action": "promote", "target": chosen.target}
            self._journal.stage("decided", **body, reason=chosen.reason)
        why = "seed" if chosen.seed else "promoted"
        if state is None:
            return self._grant(chosen.run, 0, chosen.target, None, now, why)
        start = newest_whole(self._checkpoints, chosen.run, chosen.resource, self._keeper.torn)
        kept = state.reports.get(chosen.resource)
        at_hand = start is not None and start.resource == chosen.resource
        torn = not at_hand and kept is not None and kept.checkpoint is not None
        return self._grant(chosen.run, state.attempt + torn, chosen.target, start, now, why)

    def _new_trial(self, now: float) -> Held | None:
        standings = self._standings
        while standings.more_to_come and standings.state.stop is None:
            index = standings.suggestions
            suggestion = self._searcher.suggest(index, standings.history())
            if suggestion is None:
                standings.used_up = True
                break
            config, milestones, invalid = self._resolved(suggestion)
            trial = trial_id(standings.order, config)
            same = standings.known(config)
            self._stage_suggestion(trial, config, milestones, suggestion, same, standings.order)
            run = Run(trial, standings.seeds[0])
            if same is None and invalid is None:
                return self._grant(run, 0, standings.milestones_of(trial)[0], None, now, why="new")
            if same is None and invalid is not None:
                self._on_invalid(run, invalid)
        return None

    def _resolved(self, suggestion: Suggestion) -> tuple[Mapping[str, Any], tuple[int, ...], Failure | None]:
        """Configuration and milestones; the door tries only so many draws, so a rule between fields may still be broken."""
        try:
            config = self._plan.resolve(suggestion.parameters)
            return config, self._plan.milestones_of(config), None
        except ValueError as error:
            return {"parameters": suggestion.parameters}, self._plan.milestones, replace(classify(error), kind="user")

    def _stage_suggestion(
        self,
        trial: str,
        config: Mapping[str, Any],
        milestones: tuple[int, ...],
        suggestion: Suggestion,
        same: str | None,
        order: int,
        baseline: str | None = None,
    ) -> None:
        self._journal.stage(
            "suggested",
            trial=trial,
            order=order,
            config=config,
            parameters=suggestion.parameters,
            choices=suggestion.choices,
            distributions=suggestion.distributions,
            attributes=suggestion.attributes,
            milestones=milestones,
            duplicate_of=same,
            **({} if baseline is None else {"baseline": baseline}),
        )

    def _grant(self, run: Run, attempt: int, target: int, start: Checkpoint | None, now: float, why: str) -> Held:
        self._adjust(run)
        state = self._standings.state.runs.get(run.id)
        changes = state.changes if state is not None else {}
        config = self._standings.state.trials[run.trial].config
        resource = start.resource if start is not None else 0
        milestones = self._milestones[run.trial] = self._milestones.get(run.trial) or self._plan.milestones_of(config)
        known = state is not None and resource in state.reports
        replay = start is not None and not known
        lease = Lease(
            id=f"{run.trial}-s{run.seed}-a{attempt}-l{state.leases if state is not None else 0}",
            attempt=Attempt(run, attempt),
            config={**config, **changes},
            milestones=tuple(m for m in milestones if m > resource),
            from_resource=resource,
            from_checkpoint=start.folder if start is not None else None,
            replay=replay,
            changes=dict(changes) or None,
        )
        self._journal.stage(
            "lease_started",
            lease=lease.id,
            run=run.id,
            attempt=attempt,
            from_resource=resource,
            from_checkpoint=lease.from_checkpoint,
            milestones=lease.milestones,
            changes=lease.changes,
            target=target,
            replay=replay,
            why=why,
        )
        return Held(lease, start, now)

    def _adjust(self, run: Run) -> None:
        """Begin smaller where a run that needs no more memory had too little; one with a report has shown that it fits."""
        state = self._standings.state
        found = state.runs.get(run.id)
        if self._plan.spec.on_failure.oom == "stop" or (found is not None and found.reports):
            return
        changes = found.changes if found is not None else {}
        less = lowered({**state.trials[run.trial].config, **changes}, state.too_large)
        if less is not None:
            body = {"run": run.id, "changes": {**changes, **less.changes}, "after": less.after}
            self._journal.stage("adjusted", **body, reason=less.reason)
