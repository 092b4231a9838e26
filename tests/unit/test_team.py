"""Which failure ends a lease of several workers, and that none is waited for in vain; the runs stand in for Ray's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.finetune.group import begin_anew
from pipelines.stage import Devices, Task, UserError, WorkerLost
from sweeps import team
from sweeps.failures import Failure, classify
from sweeps.lease_thread import LeaseThread
from sweeps.team import Team, TeamFailed, teamwork
from sweeps.worker import Setup

OOM = Failure("oom", "OutOfMemory: no room")
DEAD = Failure("node", "ActorDiedError: the actor died")
LOST = Failure("node", "WorkerLost: lost the connection to another worker of the trial")
ODD = Failure("unknown", "ValueError: what is this")


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    """A team whose runs are their outcomes, and which begins without hiring."""
    monkeypatch.setattr(team, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(team, "_outcome", lambda run: run)
    monkeypatch.setattr(team, "FAILED_SECONDS", 0.05)
    monkeypatch.setattr(team, "SELF_SECONDS", 0.05)
    monkeypatch.setattr(team, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Team, "begin", lambda self, task, log: task)
    yield Team(Setup(Devices(1.0, 0.0, 3), "/sweeps"))
    begin_anew()  # as the next lease in this process would


def task() -> Task:
    return Task(config={}, trial="0000-abc", seed=0, attempt=0, folder="", milestones=(1,), total=1)


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ([None, None], None),
        ([LOST, DEAD], DEAD),
        ([LOST, OOM], OOM),
        ([DEAD, OOM], OOM),
        ([ODD, LOST], ODD),
        ([LOST, None], LOST),
    ],
)
def test_the_cause_is_told_and_not_what_the_others_saw_of_it(
    crew: Team, runs: list[Failure | None], told: Failure | None
) -> None:
    crew._runs = runs
    assert crew.failure() == told


@pytest.mark.parametrize(
    ("own", "runs", "kind", "message"),
    [
        (WorkerLost("lost the connection"), [OOM, LOST], "oom", "no room"),
        (RuntimeError("Connection closed by peer"), [DEAD, LOST], "node", "the actor died"),
        (UserError("your file"), [LOST, LOST], "user", "your file"),
        (RuntimeError("what is this"), [None, None], "unknown", "what is this"),
        (RuntimeError("what is this"), [LOST, LOST], "unknown", "what is this"),
        (RuntimeError("what is this"), [LOST, None], "unknown", "what is this"),
    ],
)
def test_a_lease_ends_with_the_failure_that_explains_it(
    crew: Team, own: Exception, runs: list[Failure | None], kind: str, message: str
) -> None:
    crew._runs = runs
    with pytest.raises((TeamFailed, type(own))) as caught, teamwork(crew, task(), None):
        raise own
    failure = classify(caught.value)
    assert failure.kind == kind
    assert message in failure.message


def test_an_end_stays_an_end(crew: Team) -> None:
    crew._runs = [LOST, None]
    with pytest.raises(SystemExit), teamwork(crew, task(), None):
        raise SystemExit


def test_a_lease_that_waits_in_vain_is_told_failed(crew: Team) -> None:
    told: list[Failure] = []
    crew._runs = [None, DEAD]
    with teamwork(crew, task(), None, told.append):
        until = time.monotonic() + 5
        while not told and time.monotonic() < until:
            time.sleep(0.01)
    assert told == [DEAD]


def test_what_is_not_to_be_told(crew: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of workers that are well, of an error that the first one tells itself, and of a lease that is over."""
    told: list[Failure] = []
    looked = threading.Semaphore(0)

    def outcome(run: Failure | None) -> Failure | None:
        looked.release()
        return run

    monkeypatch.setattr(team, "_outcome", outcome)
    crew._runs = [None, None]
    with teamwork(crew, task(), None, told.append):
        assert all(looked.acquire(timeout=5) for _ in range(4)), "nobody looks"
    crew._runs = [LOST, None]
    monkeypatch.setattr(team, "SELF_SECONDS", 0.02)
    with pytest.raises(RuntimeError, match="what is this"), teamwork(crew, task(), None, told.append):
        raise RuntimeError("what is this")
    assert told == []
    crew._runs = [DEAD, None]
    end = crew.watch(told.append)
    end()
    threads = [thread for thread in threading.enumerate() if thread.name == "team-watch"]
    for thread in threads:
        thread.join(5)
    assert told == []


def test_a_lease_that_is_told_failed_ends_for_its_driver() -> None:
    lease = LeaseThread(task(), None, lambda task, report: time.sleep(0.2))
    lease.fail(DEAD)
    met = lease.next()
    assert (met.kind, met.failure, met.recycle, lease.broken) == ("failed", DEAD, True, True)
    assert lease.finish(5)


def test_the_others_write_beside_the_trials_log(tmp_path: Path) -> None:
    assert team._log_of(str(tmp_path / "0001-ab.log"), 2) == str(tmp_path / "0001-ab.worker-2.log")
    assert team._log_of(None, 1) is None
