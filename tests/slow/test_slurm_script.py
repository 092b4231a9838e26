"""Sweeps on a small fake Slurm, with two nodes and real Ray: submitted, cancelled, stopped, gone on with; and one that waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import killing
import pytest
import waiting_sweep
from searching import holding, told

from sweeps.load import load_file
from sweeps.paths import SweepPaths

pytestmark = pytest.mark.slow

PLANTED = "planted-90ce1b-word"
"""A secret in the environment that sbatch is called in: every node's Ray has it from there."""
MORE = """\
storage: ./runs
env: {PLANTED: "${PLANTED}"}
"""
SECONDS = 600


def call(folder: Path, *words: str) -> str:
    """A program, as a user with the fake Slurm on the path calls it."""
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"FAKE_SLURM": str(folder / "jobs"), "HOME": str(folder / "home"), "PLANTED": PLANTED}
    env = {**os.environ, "PATH": path, **own}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def await_end(folder: Path, job: str) -> str:
    """Wait until a job has left the queue; how `sacct` says that it ended."""
    until = time.monotonic() + SECONDS
    while call(folder, "squeue", "--noheader", "--format=%T", f"--jobs={job}"):
        assert time.monotonic() < until, (folder / f"two-{job}.log").read_text()[-3000:]
        time.sleep(0.5)
    return call(folder, "sacct", "--noheader", "--parsable2", "--format=State,ExitCode", f"--jobs={job}")


def processes(folder: Path) -> list[str]:
    """Command lines of processes that know the folder of the test."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
            if str(folder / "jobs").encode() in environment and (path / "cmdline").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def await_kind(folder: Path, kind: str, count: int, job: str) -> None:
    """Wait until a sweep has so many events of a kind."""
    until = time.monotonic() + SECONDS
    while [event.kind for event in killing.read(SweepPaths.of(folder / "runs", "two"))].count(kind) < count:
        assert time.monotonic() < until, (folder / f"two-{job}.log").read_text()[-3000:]
        time.sleep(0.2)


def prepare(folder: Path) -> Path:
    """A user's folder with a sweep file, and a Slurm; the file."""
    fake_slurm.install(folder / "bin")
    (folder / "jobs").mkdir()
    return waiting_sweep.write(folder, folder / "go", MORE, kwargs=", reveal: PLANTED")


def test_jobs_are_submitted_cancelled_stopped_and_gone_on_with(tmp_path: Path) -> None:
    file = prepare(tmp_path)

    # One word of the command is another, and the sweep runs in Slurm.
    answer = call(
        tmp_path, "stockpot", "submit", "two.yaml", "--address", "slurm://gpu", "--cpus", "1", "--detach", "--json"
    )
    first = json.loads(answer)["job"]
    assert json.loads((tmp_path / "jobs" / first / "asked.json").read_text())["partition"] == "gpu"
    await_kind(tmp_path, "reported", 2, first)
    assert "two: running" in call(tmp_path, "stockpot", "status", "two")
    assert "2 of 2 nodes have joined" in call(tmp_path, "stockpot", "logs", "two", "--job")
    call(tmp_path, "scancel", first)
    assert await_end(tmp_path, first).startswith("CANCELLED")
    paths = load_file(file).paths
    assert killing.read(paths)[-1].kind == "driver_ended", "the driver ended as on Ctrl-C, and said so"
    assert "job " not in call(tmp_path, "stockpot", "status", "two"), "a job that has ended is nobody's driver"

    # It goes on where it ran, without an address, and stops when it is asked to.
    second = json.loads(call(tmp_path, "stockpot", "resume", "two", "--detach", "--json"))["job"]
    assert int(second) == int(first) + 1
    await_kind(tmp_path, "driver_started", 2, second)
    stopped = call(tmp_path, "stockpot", "stop", "two", "--storage", "runs", "--grace", "1")
    assert "stopped; go on with: stockpot resume two" in stopped
    assert await_end(tmp_path, second) == "FAILED|130:0"

    # The script that the manifest prints goes on as well.
    call(tmp_path, "stockpot", "cluster", "manifest", "slurm", "two.yaml", "--cpus", "1", "-o", "two.sh")
    (tmp_path / "go").touch()
    third = call(tmp_path, "sbatch", "--parsable", "two.sh")
    assert await_end(tmp_path, third) == "COMPLETED|0:0", (tmp_path / f"two-{third}.log").read_text()[-3000:]
    ended = [event.body["state"] for event in killing.read(paths) if event.kind == "run_ended"]
    assert ended.count("finished") == 4
    reports = [event.body for event in killing.read(paths) if event.kind == "reported"]
    assert {one["telemetry"]["train/reveal_length"] for one in reports} == {float(len(PLANTED))}, (
        "trials have the secret"
    )
    assert PLANTED not in told(paths)
    assert holding(PLANTED, [tmp_path]) == []
    assert processes(tmp_path) == []
    assert list(tmp_path.glob(".two-slurm-*/token")) == []


def test_a_job_that_waits_is_told_of_and_taken_back(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "jobs" / "full").touch()
    answer = call(tmp_path, "stockpot", "submit", "two.yaml", "--address", "slurm://", "--cpus", "1", "--detach")
    assert "two waits on Slurm as the job 101" in answer
    assert "101 on Slurm waits (PENDING: Priority)" in call(tmp_path, "stockpot", "status", "two")
    assert json.loads(call(tmp_path, "stockpot", "status", "two", "--json"))["job"]["state"] == "waiting"
    assert "had not begun; its job 101 (Slurm) is cancelled" in call(tmp_path, "stockpot", "stop", "two")
    assert await_end(tmp_path, "101").startswith("CANCELLED")
    with pytest.raises(AssertionError, match="two never began: its job 101"):
        call(tmp_path, "stockpot", "status", "two")
    assert not (tmp_path / "runs").exists()
