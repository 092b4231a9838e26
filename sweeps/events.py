"""What a ledger holds: events of so many kinds, and the scores of items.

Events (kind: body). `run` is `Run.id`; bodies are JSON; NaN never appears (scores use `Score.record`).

    sweep_created     {name, spec, versions, space}                    first event; the resolved spec
    driver_started    {pid, host, version, code, slots, cpus, gpus, workers, address, differences}  one a driver: submit, resume; cpus and gpus a
                      worker's; code: hash of our packages; differences: in what the nodes' versions differ from here
    budget_changed    {budget, trials, finalists, before}              after the driver_started of a `resume --budget`
    priority_changed  {priority, before}                               after the driver_started of a `resume --priority`
    suggested         {trial, order, config, parameters, choices, distributions, attributes, duplicate_of}
    adjusted          {run, changes, after, reason}                    it begins smaller, as `after` ran out of memory
    lease_started     {lease, run, attempt, from_resource, from_checkpoint, milestones, changes}
    reported          {lease, run, attempt, resource, scores, telemetry, checkpoint, worker_seconds}
    decided           {run, resource, action, reason}                  same transaction as the report or lease it answers
    lease_ended       {lease, run, reason}                             stopped | finished | interrupted
    failed            {lease, run, attempt, kind, message, traceback, final}
    run_ended         {run, state, reason}                             finished | stopped | failed
    checkpoint_deleted {run, attempt, resource, bytes}
    held_back         {by, priority}                                   sweep that goes first, "": all places are taken, null: neither any more
    unplaced          {leases: [...]}                                  running leases that have no place on the cluster yet
    stop_requested    {by}                                             ctrl-c | command | budget | same-error
    final_frozen      {candidates: [{role, run|soup|model, ...}]}     with several tuning seeds also `others`: [{run, ...}]
    test_opened       {by, candidates, metrics}
    final_scored      {role, candidate, scores, seed, owner, own?}     items under `owner` (default `final/<role>[/seed-s]`)
    baseline_scored   {candidate, scores, seed, owner}                 the baseline on tune, for what trials are worth against it
    verdict           {left, right, metric, difference, se, low, high, p, p_holm, n, clusters, dropped, better, covers, seeds, note}
    soup_started      {soup, method, settings, metric, ingredients: [{run, checkpoint, hash, score, resource, parameters}]}
    soup_scored       {soup, step, mixture: [[run, weight], ...], method, scale, seed, rank, energy, score, seen, failed}
                      what a plain average lacks is left out; items under owner `soup/<id>/<step>`
    soup_answered     {soup, question, about, answer}                  learn | problems: asked of the weights once
    soup_decided      {soup, run, decision, score, best, reason}
    soup_noted        {soup, what, ...}                                path | learned | search | toward_base | phase
    soup_finished     {soup, ingredients, method, scale, rank, ..., made, folder, score, hash, reason}  folder empty: none
    phase             {phase, kind, body}                              an event of a sparse soup's phase (`sweeps.inner`)
    probed            {run | "baseline", n, p50, p95, stages: {stage: {p50, p95}}}  seconds a question, without the memo
    driver_ended      {reason, why?}                                   finished | interrupted | aborted; why: what broke it off
    sweep_finished    {trials, failed, best, seconds}

Reports of any attempt of a run but the newest are dropped by the fold, and a report of a (run, resource) that is already
there is not appended again. `sweeps.fold` says precisely which reports count and what further keys the engine writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.base import ItemSet, Score


@dataclass(frozen=True)
class Event:
    """One fact. `seq` and `time` (seconds since the epoch, UTC) are given by the ledger."""

    kind: str
    body: Mapping[str, Any]
    seq: int = 0
    time: float = 0.0


@dataclass(frozen=True)
class Items:
    """Item scores to store with an event: keyed by (owner, resource, name, split), owner = run id, `final/...`, `soup/...`."""

    owner: str
    resource: int
    score: Score


@dataclass(frozen=True)
class StoredItems:
    """Item scores as read back."""

    item_set: ItemSet
    values: NDArray[np.float32] = field(compare=False)
