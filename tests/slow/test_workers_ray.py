"""Trials of two workers on real Ray: the loss curve of one worker, early stops that leave nothing behind, a killed worker.

Models are tiny and two CPUs are the whole machine, so that one trial runs at a time and would wait for ever for what another
one had kept.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import killing
import pytest
import ray
from engines import begun

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from second_worker import SecondWorker
from sft_runs import make_place, same, sft_sweep, weights

from evaluators.base import Report
from pipelines.finetune.sft import SFTPipeline
from pipelines.stage import Task
from sweeps.backend import RayBackend
from sweeps.load import load_file
from sweeps.paths import SweepPaths
from sweeps.state import SweepState
from sweeps.trial_log import BEGAN, records

pytestmark = pytest.mark.slow

STEPS = 8
TOGETHER = {"workers": 2, "cpus": 1, "gpus": 0}


def write(folder: Path, name: str, pipeline: dict[str, Any], **sections: Any) -> Path:
    """A sweep of trials of two workers that report every step."""
    steps = {"lora_dropout": 0.0, "max_steps": STEPS, "gradient_accumulation_steps": 1, "warmup_ratio": 0.0,
             "weight_decay": 0.0}  # fmt: skip
    shared = {"storage": "./runs", "report_every": 1, "resources": TOGETHER}
    return sft_sweep(folder, name, {**steps, **pipeline}, **shared, **sections)


@dataclass
class Ran:
    """A sweep that was run in this process, with its backend still open."""

    state: SweepState
    paths: SweepPaths
    left: list[str]
    groups: list[str]
    cpus: tuple[float, float]
    pids: list[int]


def titles(pids: list[int]) -> list[str]:
    """What Ray calls the workers among these processes that are somebody's."""
    found = []
    for pid in killing.alive(pids):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        if words.startswith("ray::") and not words.startswith("ray::IDLE") and not words.endswith("Agent"):
            found.append(words)
    return found


def await_nothing(pids: list[int], seconds: float = 60) -> tuple[list[str], list[str]]:
    """Titles of workers and states of placement groups that are left; waits until there is nothing."""
    until = time.monotonic() + seconds
    while True:
        left = titles(pids)
        groups = [group["state"] for group in ray.util.placement_group_table().values()]
        if (not left and set(groups) == {"REMOVED"}) or time.monotonic() > until:
            return left, groups
        time.sleep(0.2)


def await_free(seconds: float = 60) -> tuple[float, float]:
    """CPUs that are free, and all of them; waits until these are the same."""
    until = time.monotonic() + seconds
    while True:
        free, whole = ray.available_resources().get("CPU", 0.0), ray.cluster_resources()["CPU"]
        if free == whole or time.monotonic() > until:
            return free, whole
        time.sleep(0.2)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = make_place(tmp_path_factory.mktemp("workers"))
    rates = [0.01, 0.004, 0.002, 0.0005, 0.0002, 0.0001]
    file = write(
        folder,
        "halved",
        {},
        parameters={"learning_rate": rates},
        method="grid",
        early_terminate={"type": "asha", "min": 2, "eta": 2},
    )
    loaded = load_file(file)
    with closing(RayBackend(loaded, loaded.paths)) as backend, begun(loaded, backend.slots) as engine:
        assert (backend.slots, backend.placement.each) == (os.cpu_count() // 2, "2 workers of 1 CPU")  # type: ignore[operator]
        backend.run(engine)
        cpus = await_free()
        pids = killing.below(os.getpid())
        left, groups = await_nothing(pids)
    yield Ran(engine.state, loaded.paths, left, groups, cpus, pids)
    assert not killing.await_gone(pids, 60), "processes were left behind"


def test_early_stops_leave_no_worker_no_group_and_no_cpu_behind(ran: Ran) -> None:
    ends = sorted(run.phase for run in ran.state.runs.values())
    assert len(ends) == 6
    assert ends.count("stopped") >= 3
    assert "finished" in ends
    assert not any(run.failures for run in ran.state.runs.values())
    assert ran.left == []
    assert set(ran.groups) == {"REMOVED"}
    assert ran.cpus[0] == ran.cpus[1]


def pids_of(log: Path) -> list[int]:
    """Processes in which leases began, by a trial's log."""
    return [record["pid"] for record in records(log.read_text().splitlines()) if record.get("event") == BEGAN]


def test_both_workers_stay_warm(ran: Ran) -> None:
    heads: dict[str, list[int]] = {"first": [], "second": []}
    for log in ran.paths.logs.glob("0*.log"):
        kind = "second" if log.name.endswith(".worker-1.log") else "first"
        heads[kind] += pids_of(log)
    leases = sum(run.leases for run in ran.state.runs.values())
    assert [len(pids) for pids in heads.values()] == [leases, leases]
    assert len(set(heads["first"])) < leases
    assert len(set(heads["second"])) < leases


def alone(ran: Ran, config: dict[str, Any], folder: Path) -> list[Report]:
    """Reports of one process with the steps of two."""
    reports: list[Report] = []
    task = Task(
        {**config, "gradient_accumulation_steps": 2},
        "0000-alone",
        0,
        0,
        str(folder),
        (STEPS,),
        total=STEPS,
        rung_evaluators=({"type": "loss"},),
        report_every=1,
    )
    SFTPipeline().run(task, reports.append)
    return reports


def test_the_loss_curve_is_that_of_one_worker_with_the_same_steps(ran: Ran, tmp_path: Path) -> None:
    run = next(run for run in ran.state.runs.values() if run.phase == "finished")
    theirs = {at: report.telemetry for at, report in run.reports.items()}
    mine = {report.resource: report for report in alone(ran, dict(ran.state.trials[run.trial].config), tmp_path)}
    assert sorted(theirs) == sorted(mine) == list(range(1, STEPS + 1))
    for at, report in mine.items():
        for name in ("train/loss", "train/grad_norm"):
            assert theirs[at][name] == pytest.approx(report.telemetry[name], abs=1e-4), (at, name)
        assert theirs[at]["cost/tokens"] == report.telemetry["cost/tokens"]
    assert mine[1].telemetry["train/loss"] > mine[STEPS].telemetry["train/loss"] + 0.1


def test_a_killed_worker_is_a_nodes_failure_and_the_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    folder = make_place(tmp_path)
    plan = {
        "early_terminate": {"type": "asha", "min": 4, "eta": 2},
        "parameters": {"learning_rate": [0.01]},
        "method": "grid",
    }
    cut = write(folder, "cut", {"max_steps": 40, "lora_dropout": 0.1}, **plan)
    driver = killing.start(cut)
    loaded = load_file(cut)
    paths = loaded.paths
    try:
        until = time.monotonic() + 600
        while not list(paths.root.glob("trials/*/seed-0/attempt-0/checkpoint-*/complete.json")):
            assert time.monotonic() < until
            assert driver.poll() is None
            time.sleep(0.01)
        (log,) = paths.logs.glob("*.worker-1.log")
        os.kill(pids_of(log)[-1], signal.SIGKILL)
        killed = time.time()
        assert driver.wait(400) == 0
    finally:
        driver.kill()
        driver.wait()
    (failed,) = [event for event in killing.read(paths) if event.kind == "failed"]
    assert failed.body["kind"] == "node"
    assert failed.time - killed < 120
    (end,) = paths.root.glob("trials/*/seed-0/attempt-*/checkpoint-40")
    assert end.parent.name == "attempt-1"
    assert json.loads((end / "state.json").read_text())["workers"] == 2
    with SecondWorker() as second:
        second.train(loaded.resolve({"learning_rate": 0.01}), tmp_path / "whole", seed=0)
    whole = tmp_path / "whole" / "checkpoint-40"
    assert same(whole, end), max(float((weights(whole)[n] - w).abs().max()) for n, w in weights(end).items())
