"""A sweep in KubeRay, from one command on a laptop that sees nothing of its volume; Kubernetes is a stand-in, Ray is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_kubectl
import pytest
import waiting_sweep
from awaiting import await_that

pytestmark = pytest.mark.slow

SECONDS = 300


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command on the laptop."""
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": path, "FAKE_KUBE": str(folder / "kube"), "HOME": str(folder / "home")}
    return subprocess.run(
        words, cwd=folder / "laptop", env={**os.environ, **own}, capture_output=True, text=True, timeout=SECONDS, check=False
    )  # fmt: skip


def run(folder: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A command on the laptop that ends as expected."""
    done = call(folder, *words)
    assert done.returncode == status, (words, done.stdout, done.stderr)
    return done


def finished(folder: Path) -> int:
    """Trials that have finished, as `status` tells, also while there is no sweep yet; 0 while nobody there can answer."""
    done = call(folder, "stockpot", "status", "two", "--json")
    return int(json.loads(done.stdout)["trials"]["finished"]) if done.returncode == 0 else 0


def wait(true: Callable[[], bool], folder: Path) -> None:
    """Ask until it is so; else what the jobs have said."""
    logs = folder / "kube" / "jobs"
    await_that(true, SECONDS, lambda: [log.read_text()[-3000:] for log in logs.glob("*/log")])


def test_a_sweep_goes_to_kuberay_and_is_looked_after_from_a_laptop(tmp_path: Path) -> None:
    for place in (tmp_path / "laptop", tmp_path / "kube" / "volume"):
        place.mkdir(parents=True)
        waiting_sweep.write(place, "/stockpot/go")
    fake_kubectl.install(tmp_path / "bin")
    asked = ["stockpot", "submit", "two.yaml", "--address", "kuberay://team", "--detach"]
    assert "--volume: name the volume claim" in run(tmp_path, *asked, status=2).stderr
    assert "--image: name a container image" in run(tmp_path, *asked, "--volume", "data", status=2).stderr
    assert not (tmp_path / "kube" / "jobs").exists()
    asked += ["--volume", "data", "--image", "mine", "--nodes", "2", "--cpus", "1"]
    first = json.loads(run(tmp_path, *asked, "--json").stdout)
    assert first["folder"] == "/stockpot/stockpot-runs/two"
    job = tmp_path / "kube" / "jobs" / first["job"]
    assert "two: not begun" in run(tmp_path, "stockpot", "status", "two").stdout
    wait(lambda: fake_kubectl.status(job)["jobDeploymentStatus"] == "Running", tmp_path)

    wait(lambda: finished(tmp_path) == 2, tmp_path)
    assert "0000-" in run(tmp_path, "stockpot", "show", "two").stdout
    assert not (tmp_path / "laptop" / "stockpot-runs").exists()

    # A driver that stops ends with 130, which KubeRay would answer with another cluster.
    assert "stopped; go on with" in run(tmp_path, "stockpot", "stop", "two", "--grace", "1").stdout
    wait(lambda: fake_kubectl.status(job)["jobDeploymentStatus"] == "Suspended", tmp_path)
    assert (job / "tries").read_text() == "1"
    gone = run(tmp_path, "stockpot", "status", "two", status=2).stderr
    assert f"the cluster of {first['job']} is not there, and nobody else sees the volume data" in gone

    (tmp_path / "kube" / "volume" / "go").touch()
    second = json.loads(run(tmp_path, "stockpot", "resume", "two", "--detach", "--json").stdout)
    assert second["job"] != first["job"]
    again = tmp_path / "kube" / "jobs" / second["job"]
    wait(lambda: fake_kubectl.status(again)["jobDeploymentStatus"] in ("Complete", "Failed"), tmp_path)
    assert fake_kubectl.status(again)["jobStatus"] == "SUCCEEDED"
    printed = run(tmp_path, "stockpot", "logs", "two", "--job").stdout
    assert "two: tune/loss (lower is better), 4 trials" in printed
