"""A node cut off from all others while a trial runs on it: the trial goes on elsewhere, and what it did meanwhile counts once."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import killing
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import chaos_trial
from chaos import STEPS
from chaos_checks import results, untrue
from chaos_cluster import TRIAL, Driver, Town, events_of, title
from chaos_trial import scored, turned
from namespaces import Hosts

from cluster.processes import below
from pipelines.finetune.checkpoint import is_whole
from sweeps.paths import SweepPaths
from sweeps.trial_log import records

pytestmark = pytest.mark.slow

VALUES = (0.2, 0.35, 0.7)
FILE = """\
name: cut
storage: ./runs
pipeline: {{type: custom, import_path: "chaos_trial:Curve", total: {steps}, metrics: {{loss: minimize}}, kwargs: {{x: 0.5}}}}
parameters: {{kwargs.x: {values}}}
method: grid
metric: loss
report_every: 1
resources: {{cpus: 1, gpus: 0}}
max_concurrent_trials: 2
env: {{CHAOS_STEP: "0.1", CHAOS_HOLD: "{hold}"}}
"""
RAYS_SECONDS = 63
"""After so long Ray's own settings have a node lost."""
SECONDS = 400


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """Three nodes, each on a host of its own."""
    with contextlib.ExitStack() as stack:
        try:
            hosts = stack.enter_context(Hosts(3))
        except SystemExit as why:
            pytest.skip(str(why))
        made = Town(tmp_path, 3, hosts)
        stack.callback(made.down)
        made.up()
        yield made


@pytest.fixture
def driver(town: Town, tmp_path: Path) -> Iterator[Driver]:
    """Of three trials, two of which stop after their second step and the other before its first."""
    shutil.copy(chaos_trial.__file__, tmp_path)
    hold, file = tmp_path / "hold.json", tmp_path / "cut.yaml"
    allow(hold, dict(zip(VALUES, (2, 2, 0), strict=True)))
    file.write_text(FILE.format(steps=STEPS, values=list(VALUES), hold=hold))
    made = Driver(town, file, tmp_path / "runs" / "cut")
    made.start()
    yield made
    made.kill()


def allow(hold: Path, steps: dict[float, int]) -> None:
    aside = hold.with_suffix(".tmp")
    aside.write_text(json.dumps({str(x): count for x, count in steps.items()}))
    aside.rename(hold)


def said(driver: Driver) -> str:
    return driver.file.with_suffix(".out").read_text()


def await_that(there: Callable[[], Any], driver: Driver) -> Any:
    until = time.monotonic() + SECONDS
    while not (found := there()):
        assert driver.poll() is None, said(driver)
        assert time.monotonic() < until, said(driver)
        time.sleep(0.1)
    return found


def reported(driver: Driver) -> dict[tuple[float, int], int]:
    """The attempt that reported each value's steps."""
    events = events_of(driver.root)
    value = {one.body["trial"]: one.body["parameters"]["kwargs.x"] for one in events if one.kind == "suggested"}
    told = [one.body for one in events if one.kind == "reported"]
    return {(value[body["run"].partition("/")[0]], body["resource"]): body["attempt"] for body in told}


def trial_on(town: Town, driver: Driver, number: int) -> tuple[str, float, int] | None:
    """The trial that runs on a node, its value and its process."""
    there = {process.pid for process in below(town.raised[number].pid) if title(process).startswith(TRIAL)}
    for one in events_of(driver.root):
        if one.kind != "suggested":
            continue
        log = SweepPaths(driver.root).log(one.body["trial"])
        began = [line["pid"] for line in records(log.read_text().splitlines()) if line.get("event") == "began"]
        if there & set(began):
            return one.body["trial"], one.body["parameters"]["kwargs.x"], began[0]
    return None


def in_peace() -> dict[tuple[float, int], tuple[float, float]]:
    found = {}
    for x in VALUES:
        state = x
        for step in range(1, STEPS + 1):
            state = turned(state)
            found[x, step] = (scored(state, "tune").value, state)
    return found


def test_a_trial_whose_node_is_cut_off_goes_on_elsewhere_and_the_node_comes_back(town: Town, driver: Driver) -> None:
    """Its third step is made behind the cut: whole on the shared disk, and not reported until another attempt takes it up."""
    hold = driver.file.with_name("hold.json")
    await_that(lambda: {(x, 2) for x in VALUES[:2]} <= reported(driver).keys(), driver)
    number = next(number for number in (2, 1) if trial_on(town, driver, number))
    trial, x, pid = trial_on(town, driver, number)
    town.hosts.cut(number)
    cut = time.monotonic()
    allow(hold, {x: 3, VALUES[2]: 0})
    first = driver.root / "trials" / trial / "seed-0" / "attempt-0"
    await_that(lambda: is_whole(first / "checkpoint-3"), driver)
    assert (x, 3) not in reported(driver)
    assert await_that(lambda: reported(driver).get((x, 3)), driver) == 1, "the second attempt tells of it"
    assert time.monotonic() - cut < RAYS_SECONDS
    assert killing.alive([pid]), "what was cut off still waits there"
    town.hosts.heal(number)
    await_that(lambda: "3 nodes now, 1 more" in said(driver), driver)
    assert not killing.await_gone([pid]), "what was cut off has ended"
    hold.unlink()
    assert driver.process.wait(SECONDS) == 0, said(driver)

    events = events_of(driver.root)
    assert untrue(events, in_peace()) == []
    assert {step: attempt for (value, step), attempt in reported(driver).items() if value == x} == {
        1: 0, 2: 0, 3: 1, 4: 1, 5: 1
    }  # fmt: skip
    assert not (first / "checkpoint-4").exists()
    failures = [(one.body["run"].partition("/")[0], one.body["kind"]) for one in events if one.kind == "failed"]
    assert failures == [(trial, "node")]
    assert "lost 1 of 3 nodes; what ran there goes again elsewhere" in said(driver)
    assert "aylet" not in said(driver), "Ray's own words, stack and all, are not ours"
    assert len(results(events)) == len(VALUES) * STEPS
