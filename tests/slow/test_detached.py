"""A driver in the background of this machine: it outlives the command, and is looked after by the sweep's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import waiting_sweep
from awaiting import await_that

from cluster.processes import Process, end

pytestmark = pytest.mark.slow

SECONDS = 180


def run(folder: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "HOME": str(folder / "home"), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        ["stockpot", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == status, (words, done.stdout, done.stderr)
    return done


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Path]:
    """A user's folder; no driver of it outlives a test that fails."""
    yield tmp_path
    for file in tmp_path.glob("home/.stockpot/jobs/*/running.json"):
        command, keeper = (Process(*one) for one in json.loads(file.read_text()))
        end([process.pid for process in (command, keeper) if process.alive])


def test_a_sweep_goes_on_without_the_command_that_began_it(user: Path) -> None:
    waiting_sweep.write(user, user / "go", "storage: ./runs\n")

    # What refuses a driver, at once or on its cluster, is this command's message, and nothing is left of it.
    told = run(user, "submit", "two.yaml", "--set", "resources.cpus=999", "--detach", status=2).stderr
    assert "this machine did not start it: resources.cpus: 999 is more than any node has" in told
    assert not (user / "runs").exists()

    first = json.loads(run(user, "submit", "two.yaml", "--detach", "--json").stdout)
    assert first["folder"] == str(user / "runs" / "two")

    def shot() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run(user, "status", "two", "--json").stdout)
        return found

    await_that(lambda: shot()["trials"]["finished"] == 2, SECONDS)
    assert "2 trials at a time" in run(user, "logs", "two", "--job").stdout
    assert "is in use" in run(user, "submit", "two.yaml", "--detach", status=2).stderr
    assert "stopped; go on with: stockpot resume two" in run(user, "stop", "two", "--grace", "1").stdout

    (user / "go").touch()
    second = json.loads(run(user, "resume", "two", "--detach", "--json").stdout)
    assert second["job"] != first["job"]
    await_that(lambda: shot()["state"] == "finished", SECONDS)
    await_that(
        lambda: "two: tune/loss (lower is better), 4 trials" in run(user, "logs", "two", "--job", "-n", "99").stdout,
        SECONDS,
    )
    homes = user / "home" / ".stockpot" / "jobs"
    assert (homes / first["job"] / "ended").read_text() == "130"
    await_that(lambda: (homes / second["job"] / "ended").exists(), SECONDS)
    assert (homes / second["job"] / "ended").read_text() == "0"
