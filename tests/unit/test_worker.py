"""A lease meets the driver at every report, ends where it is told to, and fails with a type; no Ray."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace

import pytest

from evaluators.base import Report
from pipelines.pulse import beat
from pipelines.stage import Devices, Diverged, Task, UserError
from sweeps import secret_values, worker
from sweeps.lease_thread import LeaseThread, Met
from sweeps.secret_values import MASK
from sweeps.trial_log import records, shown
from sweeps.worker import CallWorker, LeaseWorker, Setup, thread_count


def task(**changes):
    return Task(config={}, trial="0000-abc", seed=0, attempt=0, folder="", milestones=(1, 2), total=2, **changes)


def three_reports(task, report):
    for resource in (1, 2, 3):
        report(Report(resource))


@pytest.fixture
def quiet(monkeypatch):
    """A worker whose set-up leaves this process's environment and module path alone."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(worker, "_SETUP", [])
    monkeypatch.setattr(secret_values, "_OWN", [secret_values.Masks()])
    return Setup(Devices(1.0, 0.0), "/sweeps")


def test_a_lease_waits_at_every_report():
    going = []

    def run(task, report):
        for resource in (1, 2):
            report(Report(resource))
            going.append(resource)

    lease = LeaseThread(task(), None, run)
    assert lease.next().report == Report(1)
    time.sleep(0.05)
    assert going == []
    assert lease.next().report == Report(2)
    assert going == [1]
    assert lease.next().kind == "ended"


def test_a_lease_that_takes_long_is_told_of_while_it_gives_signs_of_life():
    go = threading.Event()

    def run(task, report):
        beat(7)
        beat()
        assert go.wait(60)
        time.sleep(0.05)
        report(Report(1))

    lease = LeaseThread(task(), None, run, 0.01)
    assert lease.next() == Met("moved", at=7)
    go.set()
    assert lease.next().report == Report(1), "silence is not told of"
    assert lease.next().kind == "ended"
    beat(9)  # where nobody listens


def test_stop_raises_system_exit_in_the_pipeline_and_runs_its_finally():
    seen = []

    def run(task, report):
        try:
            report(Report(1))
        except SystemExit:
            seen.append("exit")
            raise
        finally:
            seen.append("finally")

    lease = LeaseThread(task(), None, run)
    assert lease.next().kind == "reported"
    assert lease.finish()
    assert seen == ["exit", "finally"]


def test_a_pipeline_that_reports_on_after_stop_is_stopped_again():
    def run(task, report):
        for resource in range(5):
            try:
                report(Report(resource))
            except SystemExit:
                continue

    lease = LeaseThread(task(), None, run)
    lease.next()
    assert lease.finish(5)


def test_what_a_stopped_pipeline_held_is_freed_before_the_next_lease(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", object()))
    held = []

    class Trainer:
        def __init__(self, report):
            self.itself, self.report = self, report
            held.append(weakref.ref(self))

        def train(self):
            self.report(Report(1, ()))

    lease = LeaseThread(task(), None, lambda task, report: Trainer(report).train())
    gc.disable()
    try:
        assert lease.next().kind == "reported"
        assert lease.finish()
        assert held[0]() is None
    finally:
        gc.enable()


def test_run_is_not_in_the_main_thread():
    found = []
    lease = LeaseThread(task(), None, lambda task, report: found.append(threading.current_thread()))
    assert lease.next().kind == "ended"
    assert found[0] is not threading.main_thread()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("row 3 has no prompt"), "user"),
        (Diverged("loss is NaN at 3"), "nan"),
        (MemoryError("no more"), "oom"),
        (ValueError("odd"), "unknown"),
    ],
)
def test_failures_are_typed_in_the_worker(error, kind):
    def run(task, report):
        raise error

    met = LeaseThread(task(), None, run).next()
    assert (met.kind, met.failure.kind, met.recycle) == ("failed", kind, True)
    assert str(error) in met.failure.message
    assert "Traceback" in met.failure.traceback


def test_what_is_no_report_is_the_users_mistake():
    met = LeaseThread(task(), None, lambda task, report: report({"loss": 1.0})).next()
    assert (met.kind, met.failure.kind) == ("failed", "user")
    assert "evaluators.base.Report" in met.failure.message


def test_a_new_lease_ends_the_one_before(quiet, monkeypatch):
    left = []

    def run(task, report):
        try:
            three_reports(task, report)
        finally:
            left.append(task.trial)

    monkeypatch.setattr(worker, "run_lease", run)
    leases = LeaseWorker(quiet)
    leases.begin(task(), None)
    assert leases.next().report == Report(1)
    leases.begin(task(), None)
    assert left == ["0000-abc"]
    assert leases.next().report == Report(1)
    leases.end()
    assert left == ["0000-abc"] * 2


def test_a_lease_that_does_not_leave_costs_the_worker(quiet, monkeypatch):
    release = threading.Event()

    def run(task, report):
        try:
            report(Report(1))
        finally:
            release.wait(10)

    monkeypatch.setattr(worker, "END_SECONDS", 0.05)
    monkeypatch.setattr(LeaseThread.finish, "__defaults__", (0.05,))
    monkeypatch.setattr(worker, "run_lease", run)
    leases = LeaseWorker(quiet)
    leases.begin(task(), None)
    leases.next()
    leases.begin(task(), None)
    met = leases.next()
    release.set()
    assert (met.kind, met.failure.kind, met.recycle) == ("failed", "node", True)


def recycled(quiet, monkeypatch, held):
    """Whether each lease's first report asks for a new worker, when the process holds so much after each lease."""
    sizes = iter(held)
    monkeypatch.setattr(worker, "resident_bytes", lambda: next(sizes))
    monkeypatch.setattr(worker, "run_lease", three_reports)
    leases, asked = LeaseWorker(quiet), []
    for _ in range(4):
        leases.begin(task(), None)
        asked.append(leases.next().recycle)
    return asked


def test_a_worker_that_keeps_growing_is_recycled(quiet, monkeypatch):
    gigabyte = 10**9
    assert recycled(quiet, monkeypatch, [gigabyte, 3 * gigabyte, 5 * gigabyte, 5 * gigabyte]) == [False] * 3 + [True]


def test_a_worker_whose_memory_can_be_given_back_is_kept(quiet, monkeypatch):
    gigabyte = 10**9
    assert recycled(quiet, monkeypatch, [gigabyte, 3 * gigabyte, 5 * gigabyte, gigabyte]) == [False] * 4


def test_what_a_lease_freed_goes_back_to_the_system(quiet, monkeypatch):
    def frees_most(task, report):
        blocks = [bytearray(100_000) for _ in range(2_000)]
        pinned.append(blocks.pop())
        del blocks
        held.append(worker.resident_bytes())

    pinned: list[bytearray] = []
    held: list[int] = []
    monkeypatch.setattr(worker, "run_lease", frees_most)
    leases = LeaseWorker(quiet)
    leases.begin(task(), None)
    leases.next()
    leases.end()
    assert held[0] - worker.resident_bytes() > 150_000_000


PROGRAM = """
import os, sys
from pipelines.stage import Task
from sweeps.lease_thread import LeaseThread
from sweeps.trial_log import records, shown

def run(task, report):
    print("from python")
    os.write(2, b"from below\\n")
    raise ValueError("and its end")

task = Task(config={}, trial="t", seed=3, attempt=1, folder="", milestones=(1,), total=1)
lease = LeaseThread(task, sys.argv[1], run)
lease.next()
lease.finish()
print("after")
"""


def test_output_goes_to_the_trials_log(tmp_path):
    log = tmp_path / "logs" / "t.log"
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, log], capture_output=True, text=True, check=True, env=plain)
    lines = list(records(log.read_text().splitlines()))
    names = {"sweep": tmp_path.name, "trial": "t", "seed": 3, "attempt": 1}
    assert all(names.items() <= record.items() for record in lines)
    assert {"event": "began", "from": 0}.items() <= lines[0].items()
    assert [shown(record) for record in lines[1:3]] == ["from python", "from below"]
    assert [record["stream"] for record in lines[1:4]] == ["stdout", "raw", "stderr"]
    assert shown(lines[-1]) == "ValueError: and its end"
    assert (done.stdout, done.stderr) == ("after\n", "")


def test_a_log_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    met = LeaseThread(task(), str(tmp_path / "file" / "t.log"), three_reports).next()
    assert met.kind == "reported"


def test_cpu_trials_see_no_gpu_and_threads_match_cpus(quiet):
    worker.prepare(Setup(Devices(2.9, 0.0), "/sweeps", {"MINE": "1"}))
    seen = {name: os.environ[name] for name in (*worker.THREAD_VARIABLES, "CUDA_VISIBLE_DEVICES", "MINE")}
    assert seen == {**dict.fromkeys(worker.THREAD_VARIABLES, "2"), "CUDA_VISIBLE_DEVICES": "", "MINE": "1"}
    assert thread_count(Devices(0.1)) == 1
    assert "/sweeps" in sys.path


def test_gpu_trials_keep_what_ray_gave_them(quiet):
    os.environ["CUDA_VISIBLE_DEVICES"] = "3"
    worker.prepare(Setup(Devices(1.0, 1.0), "/sweeps"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_worker_reads_the_secrets_of_its_own_process(quiet):
    os.environ["MY_WORD"] = "planted-word"
    os.environ["OMP_NUM_THREADS"] = "7"
    setup = Setup(Devices(), "/sweeps", {"TOKEN": "${MY_WORD}", "MODE": "plain", "BEFORE": "${OMP_NUM_THREADS}"})
    assert b"planted" not in pickle.dumps(setup), "what travels names them"
    worker.prepare(setup)
    assert [os.environ[name] for name in ("TOKEN", "MODE", "BEFORE")] == ["planted-word", "plain", "7"]


def test_a_node_without_a_secret_fails_its_leases_and_calls_so_that_another_may_have_them(quiet):
    os.environ.pop("NOT_HERE", None)
    setup = replace(quiet, env={"TOKEN": "${NOT_HERE}", "PATH2": "${PATH}"})
    leases = LeaseWorker(setup)
    leases.begin(task(), None)
    met = leases.next()
    assert (met.kind, met.failure.kind, met.recycle) == ("failed", "node", True)
    assert met.failure.message.startswith("NOT_HERE not in the environment that Ray was started in on ")
    assert "TOKEN" not in os.environ, "nothing was set"
    answer, failure = CallWorker(setup, None).call(f"{__name__}:double", {"x": 4})
    assert (answer, failure) == (None, met.failure)


def test_what_a_lease_says_of_a_secret_is_masked_before_it_travels(quiet, tmp_path):
    os.environ["MY_WORD"] = "planted-word"

    def run(task, report):
        try:
            raise KeyError("planted-word")
        except KeyError as error:
            raise ValueError(f"Bearer planted-word {'x' * 480} planted-word\nand planted-word") from error

    worker.prepare(replace(quiet, env={"TOKEN": "${MY_WORD}"}))
    log = tmp_path / "logs" / "t.log"
    lease = LeaseThread(task(), str(log), run)
    failed = lease.next()
    assert failed.failure.message.startswith(f"ValueError: Bearer {MASK} xxx")
    assert lease.finish()
    told = f"{failed}{log.read_text()}"
    assert "KeyError" in failed.failure.traceback
    assert "plant" not in told, "also where a text is cut in the middle of it"


def test_telemetry_that_is_text_fails_the_lease_and_is_not_said(quiet):
    met = LeaseThread(task(), None, lambda task, report: report(Report(1, (), {"train/x": "planted-word"}))).next()
    assert (met.kind, met.failure.kind) == ("failed", "user")
    assert met.failure.message == "TypeError: report() takes numbers as telemetry, but train/x is of type str"
    assert "ValueError" not in met.failure.traceback
    assert LeaseThread(task(), None, lambda task, report: report(Report(1, (), {"x": True}))).next().kind == "reported"


def test_what_a_call_says_of_a_secret_is_masked_before_it_travels(quiet, tmp_path, capfd):
    os.environ["MY_WORD"] = "planted-word"
    calls = CallWorker(replace(quiet, env={"TOKEN": "${MY_WORD}"}), None)
    assert calls.call(f"{__name__}:told", {}) == ({"n": 1}, None)
    assert calls.poll(0) == [f"have {MASK}"]
    answer, failure = calls.call(f"{__name__}:told", {"fail": True})
    assert (answer, failure.message) == (None, f"no {MASK}")
    said = capfd.readouterr()
    assert MASK in said.err
    assert "planted-word" not in f"{failure}{said.err}{said.out}"


def told(payload):
    word = os.environ["TOKEN"]
    worker.progress(f"have {word}")
    if payload.get("fail"):
        raise UserError(f"no {word}")
    return {"n": 1}


def double(payload):
    worker.progress("half way")
    if payload["x"] < 0:
        raise UserError("x must not be negative")
    return 2 * payload["x"]


def test_calls_answer_with_a_result_or_a_typed_failure(quiet):
    calls = CallWorker(quiet, None)
    assert calls.call(f"{__name__}:double", {"x": 4}) == (8, None)
    assert (calls.poll(0), calls.poll(1)) == (["half way"], [])
    answer, failure = calls.call(f"{__name__}:double", {"x": -1})
    assert (answer, failure.kind, failure.message) == (None, "user", "x must not be negative")
