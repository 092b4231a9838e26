"""The generated Slurm script on a small fake Slurm: two nodes, real Ray, a cancelled job that a second one goes on with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import killing
import pytest
from searching import holding, told

from sweeps.load import load_file

pytestmark = pytest.mark.slow

FILE = """\
name: two
storage: ./runs
pipeline: {type: custom, import_path: "toy_pipeline:Toy", total: 4, metrics: {loss: minimize}, kwargs: {x: 0, step_seconds: 0.5, reveal: PLANTED}}
parameters: {kwargs.x: [0, 1, 2, 4]}
method: grid
metric: loss
report_every: 1
resources: {cpus: 1, gpus: 0}
max_concurrent_trials: 2
env: {PLANTED: "${PLANTED}"}
"""
PLANTED = "planted-90ce1b-word"
"""A secret in the environment that sbatch is called in: every node's Ray has it from there."""
SECONDS = 600


def call(folder: Path, *words: str) -> str:
    """A program, as a user with the fake Slurm on the path calls it."""
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "FAKE_SLURM": str(folder / "jobs"), "PLANTED": PLANTED}
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


def test_a_cancelled_job_stops_well_and_the_next_goes_on(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), tmp_path)
    file = tmp_path / "two.yaml"
    file.write_text(FILE)
    fake_slurm.install(tmp_path / "bin")
    (tmp_path / "jobs").mkdir()
    call(tmp_path, "stockpot", "cluster", "manifest", "slurm", "two.yaml", "--cpus", "1", "-o", "two.sh")
    first = call(tmp_path, "sbatch", "--parsable", "two.sh")
    paths, until = load_file(file).paths, time.monotonic() + SECONDS
    while "reported" not in {event.kind for event in killing.read(paths)}:
        assert time.monotonic() < until, (tmp_path / f"two-{first}.log").read_text()[-3000:]
        time.sleep(0.2)
    call(tmp_path, "scancel", first)
    assert await_end(tmp_path, first).startswith("CANCELLED")
    assert killing.read(paths)[-1].kind == "driver_ended", "the driver ended as on Ctrl-C, and said so"
    second = call(tmp_path, "sbatch", "--parsable", "two.sh")
    assert await_end(tmp_path, second) == "COMPLETED|0:0", (tmp_path / f"two-{second}.log").read_text()[-3000:]
    assert "2 of 2 nodes have joined" in (tmp_path / f"two-{second}.log").read_text()
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
