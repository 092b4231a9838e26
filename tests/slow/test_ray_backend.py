"""Leases and calls on real Ray: failures are typed and stay one trial's, workers stay warm, nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import killing
import pytest
from engines import begun

from cluster.base import ClusterError
from cluster.local import connect
from sweeps.backend import RayBackend
from sweeps.load import LoadedSweep, load_file
from sweeps.loop import CallFailed
from sweeps.paths import SweepPaths
from sweeps.scoring import call
from sweeps.state import SweepState
from sweeps.trial import Run
from sweeps.trial_log import records

pytestmark = pytest.mark.slow

FILE = """\
name: {name}
storage: ./runs
pipeline:
  type: custom
  import_path: toy_pipeline:Toy
  total: 3
  metrics: {{loss: minimize}}
  kwargs: {{x: 0.5, step_seconds: {step}}}
parameters: {parameters}
method: grid
metric: loss
resources: {{cpus: {cpus}}}
max_concurrent_trials: {most}
on_failure: {{max_restarts: 1, abort_after_same_error: 20}}
stall_after: 5
env: {{TOY_SAYS: "${{TOY_SECRET}}"}}
"""
FAULTS = {
    "nan": ("nan", "tune/loss is inf at 3", 1),
    "missing": ("user", "the report at 3 lacks the metric tune/loss", 1),
    "crash": ("unknown", "RuntimeError: the toy was told to crash", 2),
    "exit": ("node", "actor", 2),
    "stall": ("stall", "no sign of life for 5 s", 2),
}


@pytest.fixture(autouse=True, scope="module")
def secret() -> Iterator[None]:
    """What the file's `env` names; the drivers' subprocesses inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_SECRET", "s3cret")
        yield


def write(folder: Path, name: str, parameters: str, most: int = 2, step: float = 0.0, cpus: Any = 1) -> Path:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), folder)
    file = folder / f"{name}.yaml"
    file.write_text(FILE.format(name=name, parameters=parameters, most=most, step=step, cpus=cpus))
    return file


@dataclass
class Ran:
    """A sweep that was run in this process, with its backend still open."""

    loaded: LoadedSweep
    state: SweepState
    backend: RayBackend
    pids: list[int]

    @property
    def paths(self) -> SweepPaths:
        return self.loaded.paths


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    faults = ", ".join(["ok0", *FAULTS, "slow", "ok1"]).replace("ok0", "''").replace("ok1", "none")
    file = write(tmp_path_factory.mktemp("ran"), "faults", f"{{kwargs.fail: [{faults}], kwargs.say: [one, two]}}")
    loaded = load_file(file)
    with closing(RayBackend(loaded, loaded.paths)) as backend, begun(loaded, backend.slots) as engine:
        backend.run(engine)
        pids = killing.below(os.getpid())
        yield Ran(loaded, engine.state, backend, pids)
    assert not killing.await_gone(pids, 60), "Ray's processes were left behind"
    assert not backend._cluster.folder.exists()


def runs_of(ran: Ran, fault: str) -> list[Any]:
    trials = [trial for trial in ran.state.trials.values() if trial.config["kwargs"]["fail"] == fault]
    assert len(trials) == 2
    return [run for trial in trials for run in ran.state.runs.values() if run.trial == trial.id]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_trials_typed_failure(ran: Ran, fault: str) -> None:
    kind, message, times = FAULTS[fault]
    for run in runs_of(ran, fault):
        assert run.phase == "failed"
        assert [failure.kind for failure in run.failures] == [kind] * times
        assert message in run.failures[-1].message


@pytest.mark.parametrize("fine", ["", "none", "slow"])
def test_the_rest_finish(ran: Ran, fine: str) -> None:
    assert [run.phase for run in runs_of(ran, fine)] == ["finished", "finished"]


def test_a_crash_keeps_its_traceback(ran: Ran) -> None:
    run = runs_of(ran, "crash")[0]
    assert "toy_pipeline.py" in run.failures[0].traceback
    assert "the toy was told to crash" in ran.paths.log(run.trial).read_text()


def worker_of(ran: Ran, trial: str) -> list[int]:
    lines = records(ran.paths.log(trial).read_text().splitlines())
    return [record["pid"] for record in lines if record.get("event") == "began"]


def test_workers_stay_warm_and_are_recycled_after_an_error(ran: Ran) -> None:
    crashed = [
        pid for fault in ("crash", "stall", "exit") for run in runs_of(ran, fault) for pid in worker_of(ran, run.trial)
    ]
    assert len(set(crashed)) == len(crashed) == 12
    everyone = {pid for trial in ran.state.trials for pid in worker_of(ran, trial)}
    leases = sum(run.leases for run in ran.state.runs.values())
    assert len(everyone) < leases, "no worker served two leases"


def test_a_call_runs_on_a_warm_worker_with_a_trials_resources(ran: Ran) -> None:
    heard: list[str] = []
    first = ran.backend.call("toy_pipeline:look_around", {"wait": 1.2}, heard.append)
    again = ran.backend.call("toy_pipeline:look_around", {})
    assert first == again
    assert first["pid"] != os.getpid()
    assert (first["OMP_NUM_THREADS"], first["CUDA_VISIBLE_DEVICES"], first["TOY_SAYS"]) == ("1", "", "s3cret")
    assert heard[:1] == ["looking"]


def test_a_call_fails_with_a_type_and_the_next_gets_a_fresh_worker(ran: Ran) -> None:
    before = ran.backend.call("toy_pipeline:look_around", {})["pid"]
    with pytest.raises(CallFailed) as caught:
        ran.backend.call("toy_pipeline:look_around", {"fail": True})
    assert (caught.value.failure.kind, caught.value.failure.message) == ("user", "there is nothing to see")
    with pytest.raises(CallFailed) as caught:
        ran.backend.call("toy_pipeline:look_around", {"exit": True})
    assert caught.value.failure.kind == "node"
    assert ran.backend.call("toy_pipeline:look_around", {})["pid"] != before


def test_a_call_whose_worker_is_lost_is_made_again(ran: Ran, tmp_path: Path) -> None:
    before = ran.backend.call("toy_pipeline:look_around", {})["pid"]
    payload = {"exit_once": str(tmp_path / "mark")}
    assert call(ran.loaded, ran.backend, "toy_pipeline:look_around", payload)["pid"] != before
    assert (tmp_path / "mark").exists()


def test_calls_run_at_once_on_workers_of_their_own(ran: Ran) -> None:
    slots = ran.backend.slots
    started = [ran.backend.start("toy_pipeline:look_around", {"wait": 0.5}) for _ in range(slots)]
    with pytest.raises(RuntimeError, match=f"at most {slots} calls run at once"):
        ran.backend.start("toy_pipeline:look_around", {})
    pids = {one.result()["pid"] for one in started}
    assert len(pids) == slots
    forgotten = [ran.backend.start("toy_pipeline:look_around", {"fail": True}) for _ in range(slots)]
    for one in forgotten:
        one.forget()
    after = {one.result()["pid"] for one in [ran.backend.start("toy_pipeline:look_around", {}) for _ in range(slots)]}
    assert len(after) == slots
    assert not after & pids, "a worker whose forgotten call failed is not used again"


def test_an_evaluation_uses_the_pipelines_own_evaluate(ran: Ran) -> None:
    run = runs_of(ran, "")[0]
    folder = str(ran.paths.run(Run.parse(run.id)) / "attempt-0" / "checkpoint-3")
    payload = {
        "config": dict(ran.state.trials[run.trial].config),
        "model": {"base_model": "", "adapter": folder},
        "split": "select",
        "evaluators": (),
    }
    (score,) = ran.backend.call("sweeps.worker:evaluate", payload)
    assert (score.key, score.n) == ("select/loss", 16)


def test_secrets_are_nowhere_on_the_disk(ran: Ran) -> None:
    for path in ran.paths.root.rglob("*"):
        if path.is_file():
            assert b"s3cret" not in path.read_bytes(), path


def test_embedded_ray_is_private(ran: Ran) -> None:
    folder = ran.backend._cluster.folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"]) == ("token", str(folder / "token"))
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in killing.alive(ran.pids)]
    assert any(b"raylet" in command for command in commands)
    assert not any(b"dashboard-port" in command or b"ray::Dashboard\0" in command for command in commands)


def test_a_second_connection_in_this_process_is_refused(ran: Ran) -> None:
    with pytest.raises(ClusterError, match="already connected"):
        connect()


def stockpot(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([killing.STOCKPOT, *words], cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(("cpus", "said"), [(999, "resources.cpus: 999 is more than any node has")])
def test_what_can_never_run_is_refused_before_the_first_trial(tmp_path: Path, cpus: int, said: str) -> None:
    file = write(tmp_path, "big", "{kwargs.x: [0.1, 0.2]}", cpus=cpus)
    env_less = stockpot("submit", file.name, cwd=tmp_path)
    assert env_less.returncode == 2
    assert said in env_less.stderr
    assert "Traceback" not in env_less.stderr
    assert not (tmp_path / "runs").exists()


def test_a_driver_is_alone_and_ends_cleanly_on_the_first_ctrl_c(tmp_path: Path) -> None:
    file = write(tmp_path, "slow", "{kwargs.x: [0.1, 0.2, 0.3, 0.4, 0.5]}", most=1, step=0.4)
    paths = load_file(file).paths
    driver = subprocess.Popen(
        [killing.STOCKPOT, "submit", file.name], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        killing.await_seq(paths, 6, driver, 60)  # type: ignore[arg-type]
        for words in (("resume", "runs/slow"), ("submit", file.name)):
            other = stockpot(*words, cwd=tmp_path)
            assert other.returncode == 2
            assert "Traceback" not in other.stderr
            assert str(driver.pid) in other.stderr if words[0] == "resume" else "stockpot resume slow" in other.stderr
        pids = killing.below(driver.pid)
        os.killpg(driver.pid, signal.SIGINT)
        out, _ = driver.communicate(timeout=600)
    finally:
        driver.kill()
    assert driver.returncode == 130
    assert "stockpot resume" in out
    assert not killing.await_gone(pids, 60)
    events = killing.read(paths)
    assert [event.body.get("by") for event in events if event.kind == "stop_requested"] == ["ctrl-c"]
    assert events[-1].body == {"reason": "interrupted"}
    assert not any(event.kind == "failed" for event in events)
    assert killing.run_to_the_end(file) == 0
    ends = [event for event in killing.read(paths) if event.kind == "run_ended"]
    assert [event.body["state"] for event in ends] == ["finished"] * 5


@pytest.mark.parametrize(("signals", "least", "most"), [(1, 9.0, 30.0), (2, 0.0, 9.0)])
def test_a_trial_that_does_not_report_is_killed_after_the_grace_or_at_the_second_ctrl_c(
    tmp_path: Path, signals: int, least: float, most: float
) -> None:
    file = write(tmp_path, "stuck", "{kwargs.fail: [stall]}", most=1)
    file.write_text(file.read_text().replace("stall_after: 5", "stall_after: 600"))
    paths = load_file(file).paths
    driver = killing.start(file)
    try:
        killing.await_seq(paths, 4, driver, 60)
        time.sleep(3)
        pids = killing.below(driver.pid)
        began = time.monotonic()
        for _ in range(signals):
            driver.send_signal(signal.SIGTERM if signals == 1 else signal.SIGINT)
            time.sleep(0.5)
        assert driver.wait(60) == 130
        assert least <= time.monotonic() - began <= most
    finally:
        driver.kill()
    assert not killing.await_gone(pids, 60)
    assert killing.read(paths)[-1].body == {"reason": "interrupted"}
