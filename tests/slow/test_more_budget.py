"""`resume --budget` as a user runs it: a finished sweep goes on through a kill -9, and what is refused changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
from pathlib import Path

import killing
import pytest

from sweeps.load import load_file
from sweeps.paths import SweepPaths

pytestmark = pytest.mark.slow

FILE = """\
name: rounds
storage: ./runs
pipeline:
  type: custom
  import_path: toy_pipeline:Toy
  total: 9
  metrics: {loss: minimize}
  kwargs: {x: 0.5, step_seconds: 0.03}
parameters:
  kwargs.x: {min: 0.0, max: 1.0}
method: {type: tpe, seed: 5, n_startup_trials: 3}
metric: loss
budget: {trials: 6}
baseline: {kwargs.x: 1.0}
max_concurrent_trials: 1
resources: {cpus: 1}
early_terminate: {type: asha, min: 1, eta: 3, finalists: 2}
"""


def contents(paths: SweepPaths) -> dict[str, str]:
    """Every file's hash, but for the lock, which any driver takes, and SQLite's own files, which come and go."""
    passing = {paths.lock.name, f"{paths.ledger.name}-wal", f"{paths.ledger.name}-shm"}
    found = sorted(path for path in paths.root.rglob("*") if path.is_file() and path.name not in passing)
    return {str(path.relative_to(paths.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def resume(paths: SweepPaths, *words: str) -> subprocess.CompletedProcess[str]:
    command = [killing.STOCKPOT, "resume", str(paths.root), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=paths.root.parent.parent)


def test_a_finished_sweep_goes_on_with_more_trials_through_a_kill(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), tmp_path)
    file = tmp_path / "rounds.yaml"
    file.write_text(FILE)
    assert killing.run_to_the_end(file) == 0, file.with_suffix(".out").read_text()
    paths = load_file(file).paths
    assert "--budget trials=12 would add trials" in resume(paths).stdout
    first, before = killing.read(paths), contents(paths)
    for budget, said in (("trials=6", "nothing to add"), ("trials=3", "at least 6"), ("trails=9", "did you mean")):
        refused = resume(paths, "--budget", budget)
        assert refused.returncode == 2
        assert said in refused.stderr
    assert contents(paths) == before

    driver = subprocess.Popen(
        [killing.STOCKPOT, "resume", str(paths.root), "--budget", "trials=12"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        killing.await_seq(paths, first[-1].seq + 14, driver, 120)
        busy = resume(paths, "--budget", "trials=20")
        assert busy.returncode == 2, busy.stdout
    finally:
        pids = killing.below(driver.pid)
        driver.send_signal(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL, "it ended before its kill"
    assert not killing.await_gone(pids)
    assert killing.run_to_the_end(file) == 0, file.with_suffix(".out").read_text()

    events = killing.read(paths)
    assert [(e.seq, e.kind, e.body) for e in events[: len(first)]] == [(e.seq, e.kind, e.body) for e in first]
    kinds = [event.kind for event in events]
    assert kinds.count("budget_changed") == 1
    assert kinds.count("suggested") == 12
    assert kinds.count("sweep_finished") == 2
    assert kinds.count("final_frozen") == 2
    reported = [(event.body["run"], event.body["resource"]) for event in events if event.kind == "reported"]
    assert len(reported) == len(set(reported))
    resolved = json.loads(paths.resolved_spec.read_text())
    assert (resolved["spec"]["budget"]["trials"], resolved["trials"]) == (12, 12)

    show = [killing.STOCKPOT, "show", str(paths.root)]
    board = json.loads(subprocess.run([*show, "--json"], capture_output=True, text=True, check=True).stdout)
    assert board["finished"]
    assert len([row for row in board["rows"] if row["kind"] == "trial"]) == 12
    assert [done["trials"] for done in board["earlier"]] == [6]
    text = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert "an earlier final step, after 6 trials" in text
