"""Several sweeps on one cluster of two CPUs: what each holds, who goes first, and what a stop frees."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import killing
import pytest
import ray

from cluster.local import connect
from cluster.sharing import RayStore
from sweeps.load import load_file
from sweeps.paths import SweepPaths

pytestmark = pytest.mark.slow

SECONDS = 300.0
FREE_SECONDS = 20.0
"""What a stopped sweep held is free so long after `stop` says so at the latest; in fact at once."""
FILE = """\
name: {name}
storage: ./runs
pipeline:
  type: custom
  import_path: toy_pipeline:Toy
  total: 3
  metrics: {{loss: minimize}}
  kwargs: {{x: 0.5, wait_at: {wait_at}, wait_for: {wait_for}}}
parameters: {parameters}
priority: {priority}
method: grid
metric: loss
early_terminate: {early}
resources: {{cpus: {cpus}, gpus: 0}}
max_concurrent_trials: {most}
"""


class TwoCpus:
    """The cluster, and this process's connection to it."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    def write(self, name: str, **settings: Any) -> SweepPaths:
        """A sweep file of that name."""
        usual = {
            "wait_at": 0,
            "parameters": "{kwargs.x: [0.1, 0.2]}",
            "early": "none",
            "cpus": 1,
            "most": 2,
            "priority": 0,
        }
        text = FILE.format(name=name, wait_for=self.folder / f"{name}.go", **{**usual, **settings})
        (self.folder / f"{name}.yaml").write_text(text)
        return load_file(self.folder / f"{name}.yaml").paths

    def let_go(self, name: str) -> None:
        """Let the trials of a sweep get past where they wait."""
        (self.folder / f"{name}.go").touch()

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A command that goes on running, with its output in a file of its name."""
        with (self.folder / f"{words[1].partition('.')[0]}.out").open("ab") as out:
            return subprocess.Popen([killing.STOCKPOT, *words], cwd=self.folder, stdout=out, stderr=out)

    def drive(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """A driver on the cluster: `submit`, or `resume` of a sweep that is there."""
        command = ["resume", f"runs/{name}"] if (self.folder / "runs" / name).exists() else ["submit", f"{name}.yaml"]
        return self.start(*command, "--address", self.address, *words)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run(
            [killing.STOCKPOT, *words], cwd=self.folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def free(self) -> float:
        """CPUs that nobody holds."""
        return float(ray.available_resources().get("CPU", 0.0))

    def held(self) -> list[dict[str, float]]:
        """What each placement group that has its place holds."""
        groups = ray.util.placement_group_table().values()
        return [bundle for group in groups if group["state"] == "CREATED" for bundle in group["bundles"].values()]

    def claims(self) -> dict[str, dict[str, Any]]:
        """What the drivers say of their sweeps, by name."""
        entries = [json.loads(value) for value in RayStore().all().values()]
        return {entry["sweep"]: entry for entry in entries}

    def shot(self, name: str) -> dict[str, Any]:
        """A sweep's status, as JSON."""
        found: dict[str, Any] = json.loads(self.run("status", f"runs/{name}", "--json").stdout)
        return found


def leases(paths: SweepPaths) -> int:
    """Leases begun so far."""
    return sum(event.kind == "lease_started" for event in killing.read(paths))


def await_that(true: Callable[[], bool], *drivers: subprocess.Popen[bytes], seconds: float = SECONDS) -> None:
    """Wait until something is so, while the drivers run."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true"
        assert all(driver.poll() is None for driver in drivers), "a driver has ended"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoCpus]:
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
            patch.delenv(name)
        log = folder / "up.log"
        with log.open("wb") as out:
            raised = subprocess.Popen([killing.STOCKPOT, "cluster", "up", "--cpus", "2"], stdout=out, stderr=out)
        try:
            await_that(lambda: "Ctrl-C ends it" in log.read_text(), raised)
            address = re.findall(r"--address (\S+)", log.read_text())[0]
            connection = connect(address)
            yield TwoCpus(folder, address)
            connection.close()
            raised.send_signal(signal.SIGINT)
            assert raised.wait(SECONDS) == 0
        finally:
            raised.kill()
            raised.wait()


def test_a_trial_reserves_what_it_asked_for_and_a_stop_frees_it(cluster: TwoCpus) -> None:
    asha = "{type: asha, min: 1, eta: 3, finalists: 1}"
    paths = cluster.write("long", wait_at=2, early=asha, most=1)
    waits = cluster.write("waits", cpus=2, most=1)
    driver = cluster.drive("long")
    try:
        await_that(lambda: [e.kind for e in killing.read(paths)].count("reported") == 2, driver)
        await_that(lambda: cluster.held() == [{"CPU": 1.0}], driver)
        assert cluster.free() == 1.0
        other = cluster.drive("waits")
        await_that(lambda: any(e.kind == "lease_started" for e in killing.read(waits)), driver, other)
        await_that(lambda: cluster.shot("waits")["trials"]["unplaced"] == 1, driver, other)
        assert "devices  0 of 1 slots busy, each 2 CPUs" in cluster.run("status", "runs/waits").stdout
        assert cluster.shot("long")["trials"]["running"] == 1
        stopped = cluster.run("stop", "runs/waits", "--grace", "0")
        assert (stopped.returncode, other.wait(SECONDS)) == (0, 130), stopped.stderr
        assert (cluster.free(), cluster.held()) == (1.0, [{"CPU": 1.0}])
        assert cluster.run("stop", "runs/long", "--grace", "1").returncode == 0
        await_that(lambda: (cluster.free(), cluster.held()) == (2.0, []), seconds=FREE_SECONDS)
        assert driver.wait(SECONDS) == 130
    finally:
        driver.kill()
        driver.wait()
    events = killing.read(paths)
    assert not any(event.kind == "failed" for event in events)
    assert [event.body["resource"] for event in events if event.kind == "reported"] == [1, 1]
    cluster.let_go("long")
    assert cluster.drive("long").wait(SECONDS) == 0
    again = [e.body for e in killing.read(paths)[len(events) :] if e.kind == "lease_started"]
    assert [(lease["from_resource"], lease["attempt"]) for lease in again] == [(1, 1)]
    shot = cluster.shot("long")
    assert (shot["state"], shot["trials"]["finished"]) == ("finished", 1)


def test_a_higher_priority_gets_the_next_free_places_and_the_lower_goes_on_after_it(cluster: TwoCpus) -> None:
    gates = [cluster.folder / f"gate-{number}" for number in range(4)]
    gates[2].touch()
    gates[3].touch()
    low = cluster.write("low", wait_at=1, parameters=f"{{kwargs.wait_for: [{', '.join(map(str, gates))}]}}")
    cluster.write("high", wait_at=1, cpus=2, most=1, priority=5)
    first = cluster.drive("low")
    second = None
    try:
        await_that(lambda: len(cluster.held()) == 2 and leases(low) == 2, first)
        second = cluster.drive("high")
        await_that(lambda: cluster.claims().get("high", {}).get("waiting") is True, first, second)
        seen = cluster.claims()["low"]["count"]
        await_that(lambda: cluster.claims()["low"]["count"] > seen + 1, first, second)
        gates[0].touch()
        await_that(lambda: cluster.free() == 1.0, first, second)
        await_that(lambda: cluster.shot("low")["held_back"] == {"by": "high", "priority": 5}, first, second)
        assert "waiting  sweep high (priority 5) goes first" in cluster.run("status", "runs/low").stdout
        assert leases(low) == 2
        gates[1].touch()
        await_that(lambda: cluster.held() == [{"CPU": 2.0}], first, second)
        assert [event.kind for event in killing.read(low)].count("reported") == 2
        cluster.let_go("high")
        assert second.wait(SECONDS) == 0
        assert first.wait(SECONDS) == 0
    finally:
        for driver in (first, second):
            if driver is not None:
                driver.kill()
                driver.wait()
    assert (cluster.shot("low")["trials"]["finished"], cluster.shot("high")["trials"]["finished"]) == (4, 2)
    assert cluster.shot("low")["held_back"] is None
    assert cluster.shot("high")["trials"]["unplaced"] == 0
    assert cluster.claims() == {}


def test_monitoring_reads_what_the_ledger_says_while_the_sweep_runs(cluster: TwoCpus) -> None:
    """Ray's own endpoint of the node; it passes numbers on every ten seconds."""
    paths = cluster.write("metered", wait_at=2, early="{type: asha, min: 1, eta: 3, finalists: 1}")
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    driver = cluster.drive("metered")
    try:
        await_that(lambda: [e.kind for e in killing.read(paths)].count("reported") == 2, driver)
        reported = [event.body["scores"] for event in killing.read(paths) if event.kind == "reported"]
        losses = [score["value"] for scores in reported for score in scores if score["name"] == "loss"]
        expected = {
            ("ray_stockpot_reports_total", ""): 2.0,
            ("ray_stockpot_trials", ""): 2.0,
            ("ray_stockpot_slots", ""): 2.0,
            ("ray_stockpot_runs", "running"): 1.0,
            ("ray_stockpot_runs", "finished"): 0.0,
            ("ray_stockpot_best", "tune/loss"): min(losses),
        }
        await_that(lambda: expected.items() <= scraped(url, "metered").items(), driver, seconds=60)
        cluster.let_go("metered")
        assert driver.wait(SECONDS) == 0
    finally:
        driver.kill()
        driver.wait()


def scraped(url: str, sweep: str) -> dict[tuple[str, str], float]:
    """What Prometheus would read of a sweep: by the metric's name and its label beside `sweep`."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        read = re.fullmatch(r"(ray_stockpot_\w+)\{(.*)\} (\S+)", line)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', read[2])) if read else {}
        if read and labels.get("sweep") == sweep:
            found[read[1], labels.get("phase") or labels.get("metric") or labels.get("kind") or ""] = float(read[3])
    return found
