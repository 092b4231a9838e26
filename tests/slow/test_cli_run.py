"""The real command as a subprocess, on embedded Ray, with a pipeline that needs no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import killing
import pytest

from sweeps.paths import SweepPaths

pytestmark = pytest.mark.slow

STOCKPOT = str(Path(sys.executable).with_name("stockpot"))
SECONDS = 400
FILE = """\
name: {name}
pipeline:
  type: custom
  import_path: toy_pipeline:Toy
  total: 9
  metrics: {{loss: minimize}}
  kwargs: {{x: 0.1, step_seconds: {step}}}
parameters:
  kwargs.x: {{min: 0.0, max: 1.0}}
method: {{type: random, seed: 1}}
metric: loss
budget: {{trials: {trials}}}
early_terminate: {{type: asha, min: 1, eta: 3}}
resources: {{cpus: 1}}
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), tmp_path)
    yield tmp_path
    for pid in drivers(tmp_path):
        os.kill(pid, signal.SIGKILL)


def drivers(here: Path) -> list[int]:
    """Pids of drivers that a failing test left behind."""
    from sweeps.lock import DriverLock

    held = [DriverLock.holder(lock) for lock in here.glob("stockpot-runs/*/driver.lock")]
    return [int(holder["pid"]) for holder in held if holder is not None]


def write(here: Path, name: str = "toy", step: float = 0.0, trials: int = 5, more: str = "") -> str:
    (here / f"{name}.yaml").write_text(FILE.format(name=name, step=step, trials=trials) + more)
    return f"{name}.yaml"


def run(here: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([STOCKPOT, *words], cwd=here, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def start(here: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [STOCKPOT, *words], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def shown(here: Path, name: str = "toy") -> dict[str, Any]:
    record: dict[str, Any] = json.loads(run(here, "show", name, "--json").stdout)
    return record


def await_tried(here: Path, name: str, count: int, driver: subprocess.Popen[str]) -> None:
    """Wait until so many runs have a report, with the driver at work; asked in this process, as a command takes seconds."""
    until = time.monotonic() + SECONDS
    paths = SweepPaths(here / "stockpot-runs" / name)
    while time.monotonic() < until:
        assert driver.poll() is None, driver.communicate()
        if killing.last_seq(paths) and len({run for run, _ in reports(here, name)}) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{count} trials were not tried in {SECONDS} s")


def reports(here: Path, name: str = "toy") -> list[tuple[str, int]]:
    events = killing.read(SweepPaths(here / "stockpot-runs" / name))
    return [(event.body["run"], event.body["resource"]) for event in events if event.kind == "reported"]


def test_a_sweep_from_check_to_show(here: Path) -> None:
    file = write(here)
    assert "5 runs to 1, 1 run to 3, 1 run to 9" in run(here, "check", file).stdout
    assert not (here / "stockpot-runs").exists()
    done = run(here, "submit", file)
    folder = here / "stockpot-runs" / "toy"
    lines = done.stdout.splitlines()
    assert lines[0] == f"sweep toy in {folder}"
    assert any(re.match(r"\[.*\] 5/5 trials, 0 running, best tune/loss ", line) for line in lines)
    assert "\x1b" not in done.stdout
    record = shown(here)
    assert record["finished"]
    assert len(record["rows"]) >= 5
    best = record["rows"][0]
    assert (best["rank"], best["rung"], best["state"]) == (1, 9, "finished")
    assert best["name"] in done.stdout
    assert f"folder: {folder}" in done.stdout
    assert "finished" in run(here, "list").stdout
    assert "toy: finished" in run(here, "status", "toy").stdout
    assert "toy: finished" in run(here, "status", str(folder), "--watch").stdout
    assert f"toy {best['name']} pid" in run(here, "logs", "toy", best["name"]).stdout
    assert best["name"] in run(here, "show", "toy", "--csv").stdout
    run(here, "compare", "toy")
    again = run(here, "submit", file, status=2)
    assert "stockpot resume toy" in again.stderr
    assert "next" in run(here, "status", "toy").stdout
    assert shown(here) == record


def test_a_mistake_exits_2_before_anything_is_written(here: Path) -> None:
    file = write(here)
    before = sorted(here.iterdir())
    done = run(here, "submit", file, "--set", "method=randm", "--set", "budget.trails=3", status=2)
    assert "did you mean 'random'?" in done.stderr
    assert "did you mean 'trials'?" in done.stderr
    done = run(here, "submit", file, "--set", "resources.cpus=4000", status=2)
    assert "4000" in done.stderr
    done = run(here, "submit", file, "--address", "ray://x:1", status=2)
    assert "--address" in done.stderr
    assert sorted(here.iterdir()) == before


def test_json_keeps_standard_output_clean(here: Path) -> None:
    done = run(here, "submit", write(here, trials=2), "--json")
    record = json.loads(done.stdout)
    assert record["status"] == 0
    assert record["finished"]
    assert record["folder"] == str(here / "stockpot-runs" / "toy")
    assert "trials" in done.stderr


def test_ctrl_c_exits_130_and_resume_finishes(here: Path) -> None:
    driver = start(here, "submit", write(here, step=0.5))
    await_tried(here, "toy", 2, driver)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 130, out + err
    assert "Traceback" not in err
    assert "stockpot resume toy" in out
    before = reports(here)
    assert len(before) >= 2
    assert "toy: stopped" in run(here, "status", "toy").stdout
    assert not shown(here)["finished"]
    run(here, "resume", "toy")
    after = reports(here)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after)
    record = shown(here)
    assert record["finished"]
    assert record["rows"][0]["rung"] == 9


def test_stop_from_elsewhere_ends_the_driver_and_resume_finishes(here: Path) -> None:
    driver = start(here, "submit", write(here, step=1.0))
    await_tried(here, "toy", 1, driver)
    shot = json.loads(run(here, "status", "toy", "--json").stdout)
    assert (shot["state"], shot["driver"]["pid"]) == ("running", driver.pid)
    done = run(here, "stop", "toy")
    assert f"asked pid {driver.pid}" in done.stdout
    assert "stopped; go on with: stockpot resume toy" in done.stdout
    out, err = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 130, out + err
    assert not (here / "stockpot-runs" / "toy" / "stop.request").exists()
    run(here, "resume", "toy")
    assert shown(here)["finished"]


def test_failures_are_listed_and_all_failing_exits_1(here: Path) -> None:
    file = write(here, trials=3)
    done = run(
        here, "submit", file, "--set", "pipeline.kwargs.fail=crash", "--set", "on_failure.max_restarts=0", status=1
    )
    assert "stockpot logs toy" in done.stdout
    logs = run(here, "logs", "toy").stdout
    assert "the toy was told to crash" in logs
    trial = shown(here)["rows"][0]["name"]
    assert "RuntimeError: the toy was told to crash" in run(here, "logs", "toy", trial).stdout


def test_a_reader_that_leaves_does_not_end_the_sweep(here: Path) -> None:
    file = write(here, trials=2)
    command = f"{STOCKPOT} submit {file} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=here, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("sweep toy in ")
    assert shown(here)["finished"]
