"""Backends: which one an address means, processes of this machine, and Slurm's and KubeRay's words for how a job is."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.backend import Errand, Job
from cluster.background import Background
from cluster.base import ClusterError
from cluster.demand import Demand
from cluster.jobs import RayJobs
from cluster.kuberay_jobs import KubeRayJobs
from cluster.slurm_jobs import SlurmJobs
from sweeps.commands import remote
from sweeps.commands.backends import Machines, is_elsewhere, noted_backend
from sweeps.commands.places import UsageError
from sweeps.ledger import Ledger
from sweeps.notes import Note
from sweeps.paths import SweepPaths

DEMAND = Demand(
    "two", 2, 4, 1, "two.yaml", "name: two\n", "/home/me", sets=("a=1",), secrets=("A_TOKEN",), image="mine"
)
SECONDS = 20.0


@pytest.mark.parametrize(
    ("address", "detach", "elsewhere"),
    [
        (None, False, False),
        (None, True, True),
        ("auto", False, False),
        ("head:6379", False, False),
        ("head:6379", True, True),
        ("http://head:8265", False, True),
        ("https://head", False, True),
        ("slurm://", False, True),
        ("slurm://gpu", False, True),
        ("kuberay://team", False, True),
        ("ray://head:10001", False, False),
    ],
)
def test_where_the_driver_runs(address: str | None, detach: bool, elsewhere: bool) -> None:
    assert is_elsewhere(address, detach=detach) is elsewhere


@pytest.mark.parametrize(
    ("job", "status"),
    [
        (Job("j", "succeeded"), 0),
        (Job("j", "succeeded", status=0), 0),
        (Job("j", "failed", status=3), 3),
        (Job("j", "failed", status=-signal.SIGKILL), 137),
        (Job("j", "failed"), 1),
        (Job("j", "failed", "TIMEOUT", 0), 1),
        (Job("j", "stopped"), 130),
        (Job("j", "stopped", "CANCELLED by 1000", 0), 130),
        (Job("j", "stopped", status=-signal.SIGTERM), 143),
    ],
)
def test_a_job_that_did_not_succeed_has_a_status_that_says_so(job: Job, status: int) -> None:
    assert job.exit_status == status


@pytest.mark.parametrize(
    ("status", "state"), [(0, "succeeded"), (1, "failed"), (2, "failed"), (130, "stopped"), (-signal.SIGINT, "stopped")]
)
def test_how_a_command_ended_tells_how_its_job_is(status: int, state: str) -> None:
    assert Job.ended("j", status, "why") == Job("j", state, "why", status)  # type: ignore[arg-type]


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_process_in_the_background_is_followed_to_its_end(tmp_path: Path) -> None:
    here = Background(home=tmp_path)
    words = python("import os, sys; print('said', os.environ['GIVEN'], sys.argv[1:]); sys.exit(3)")
    job = here.submit(Errand("one", [*words, "a b", "$(touch x)"], environment={"GIVEN": "it"}))
    assert job.id == "one"
    ended = here.result("one", SECONDS)
    assert ended == Job("one", "failed", "exit status 3", 3)
    assert here.logs("one") == "said it ['a b', '$(touch x)']\n"
    assert "".join(here.follow("one")) == here.logs("one")
    here.cancel("one")
    assert here.status("one") == ended, "one that has ended is left alone"


def test_a_process_in_the_background_gets_ctrl_c(tmp_path: Path) -> None:
    here = Background(home=tmp_path)
    text = (
        "import sys, time\ntry:\n print('ready', flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n sys.exit(130)"
    )
    here.submit(Errand("two", python(text)))
    until = time.monotonic() + SECONDS
    while "ready" not in here.logs("two"):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert here.status("two") == Job("two", "running")
    here.cancel("two")
    assert here.result("two", SECONDS) == Job("two", "stopped", "exit status 130", 130)


def test_a_process_in_the_background_that_was_killed_with_its_keeper_has_failed(tmp_path: Path) -> None:
    here = Background(home=tmp_path)
    here.submit(Errand("three", python("import time; time.sleep(60)")))
    (command, _), (keeper, _) = json.loads((tmp_path / "three" / "running.json").read_text())
    os.kill(keeper, signal.SIGKILL)
    assert not here.status("three").over, "the command itself still runs"
    os.kill(command, signal.SIGKILL)
    ended = here.result("three", SECONDS)
    assert (ended.state, ended.message) == ("failed", "it was killed, or the machine went down")


def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    here = Background(home=tmp_path)
    with pytest.raises(ClusterError, match="could not be started: No such file"):
        here.submit(Errand("four", ["/nowhere/program"]))
    with pytest.raises(ClusterError, match="no name of a job"):
        here.submit(Errand("../five", ["true"]))
    here.submit(Errand("six", ["true"]))
    with pytest.raises(ClusterError, match="can't keep the job"):
        here.submit(Errand("six", ["true"]))
    with pytest.raises(ClusterError, match="there is no job seven"):
        here.status("seven")


@pytest.mark.parametrize(("status", "begun", "refused"), [(1, True, False), (1, False, True), (2, True, True)])
def test_a_sweep_that_fails_at_once_is_told_from_one_that_never_began(
    status: int, begun: bool, refused: bool, tmp_path: Path
) -> None:
    here, paths = Background(home=tmp_path / "jobs"), SweepPaths.of(tmp_path, "two")
    if begun:
        Ledger.create(paths.root).close()
    here.submit(
        Errand("one", python(f"import sys; print('stockpot: no such thing'); print('more'); sys.exit({status})"))
    )
    if refused:
        with pytest.raises(UsageError, match="this machine did not start it: no such thing"):
            remote.refuse_early_end(here, "one", paths)
    else:
        assert remote.refuse_early_end(here, "one", paths).state == "failed"


def program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\n{text}\n')
    file.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize(
    ("squeue", "sacct", "expected"),
    [
        ("PENDING|Priority", "", Job("7", "waiting", "PENDING: Priority")),
        ("RUNNING|None", "", Job("7", "running", "RUNNING")),
        ("COMPLETING|None", "", Job("7", "running", "COMPLETING")),
        ("", "COMPLETED|0:0", Job("7", "succeeded", "COMPLETED", 0)),
        ("", "FAILED|1:0", Job("7", "failed", "FAILED", 1)),
        ("", "FAILED|130:0", Job("7", "stopped", "FAILED", 130)),
        ("", "CANCELLED by 1000|0:15", Job("7", "stopped", "CANCELLED by 1000", 0)),
        ("", "TIMEOUT|0:0", Job("7", "failed", "TIMEOUT", 0)),
        ("", "NODE_FAIL|1:0", Job("7", "failed", "NODE_FAIL", 1)),
        ("error", "OUT_OF_MEMORY|0:125", Job("7", "failed", "OUT_OF_MEMORY", 0)),
    ],
)
def test_slurms_words(squeue: str, sacct: str, expected: Job, path: Path) -> None:
    gone = "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1"
    program(path, "squeue", gone if squeue == "error" else f"[ -z '{squeue}' ] || echo '{squeue}'")
    program(path, "sacct", f"echo '{sacct}'")
    assert SlurmJobs(DEMAND).status("7") == expected


def test_slurm_says_why_it_refuses(tmp_path: Path, path: Path) -> None:
    demand = Demand("two", 2, 4, 1, "two.yaml", "", str(tmp_path))
    program(path, "sbatch", "cat > script; echo sbatch: error: invalid partition specified: gpuu >&2; exit 1")
    with pytest.raises(ClusterError, match="sbatch: sbatch: error: invalid partition specified: gpuu"):
        SlurmJobs(demand, "gpuu").submit(Errand("x", ()))
    assert "#SBATCH --partition=gpuu" in (tmp_path / "script").read_text()
    program(path, "sbatch", "cat > /dev/null; echo '12;far'")
    assert SlurmJobs(demand).submit(Errand("x", ())) == Job("12", "waiting")
    program(path, "squeue", "")
    program(path, "sacct", "")
    with pytest.raises(ClusterError, match="Slurm knows no job 12"):
        SlurmJobs(demand).status("12")


def test_without_slurm_the_message_says_where_to_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="sacct is not on the PATH: call this on a machine of Slurm"):
        SlurmJobs(DEMAND).status("7")


@pytest.mark.parametrize(
    ("deployed", "ran", "expected"),
    [
        ("", "", "waiting"),
        ("Initializing", "", "waiting"),
        ("Waiting", "", "waiting"),
        ("Retrying", "FAILED", "waiting"),
        ("Running", "PENDING", "running"),
        ("Running", "RUNNING", "running"),
        ("Complete", "SUCCEEDED", "succeeded"),
        ("Failed", "FAILED", "failed"),
        ("ValidationFailed", "", "failed"),
        ("Suspended", "", "stopped"),
        ("Complete", "STOPPED", "stopped"),
    ],
)
def test_kuberays_words(deployed: str, ran: str, expected: str, path: Path) -> None:
    status = {"jobDeploymentStatus": deployed, "jobStatus": ran, "message": "why"}
    program(path, "kubectl", f"echo '{json.dumps({'status': status})}'")
    found = KubeRayJobs(DEMAND, "data").status("two-1")
    assert found.state == expected
    assert found.message.endswith("why")


def test_kuberay_asks_for_secrets_before_a_job(path: Path) -> None:
    program(path, "kubectl", "")
    with pytest.raises(ClusterError) as refused:
        KubeRayJobs(DEMAND, "data", "team").submit(Errand("x", ()))
    assert "the Secret two-secrets lacks A_TOKEN" in str(refused.value)
    assert "kubectl --namespace team create secret generic two-secrets --from-literal=A_TOKEN=" in str(refused.value)
    assert "apply" not in (path / "calls").read_text()
    has = """case "$*" in *secret*) echo '{"data": {"A_TOKEN": "eA=="}}';; *) cat > FOLDER/applied;; esac"""
    program(path, "kubectl", has.replace("FOLDER", str(path)))
    job = KubeRayJobs(DEMAND, "data", "team").submit(Errand("x", ()))
    assert job.state == "waiting"
    assert job.id.startswith("two-")
    assert "--namespace team apply -f -" in (path / "calls").read_text()
    kinds = [part["kind"] for part in yaml.safe_load_all((path / "applied").read_text())]
    assert kinds == ["ConfigMap", "RayJob", "NetworkPolicy"]


class Client:
    """Ray's job client for one job, whose log grows with every look."""

    def __init__(self, state: str, code: int | None, log: list[str]) -> None:
        self.state, self.code, self.log, self.looks = state, code, log, 0
        self.stopped: list[str] = []

    def get_job_info(self, job: str) -> Any:
        over = self.looks >= len(self.log)
        state, code = (self.state, self.code) if over else ("RUNNING", None)
        return SimpleNamespace(status=SimpleNamespace(value=state), message=None, driver_exit_code=code)

    def get_job_logs(self, job: str) -> str:
        self.looks += 1
        return "".join(self.log[: self.looks])

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)


def ray_jobs(client: Client, monkeypatch: pytest.MonkeyPatch) -> RayJobs:
    monkeypatch.setattr(RayJobs, "submit", lambda self, errand: Job(errand.name, "waiting"))
    monkeypatch.setattr(RayJobs, "every", 0.0)
    jobs = object.__new__(RayJobs)
    jobs.address = jobs.place = "http://head:8265"
    jobs._client = client  # type: ignore[assignment]
    return jobs


@pytest.mark.parametrize(
    ("state", "code", "expected", "status"),
    [
        ("SUCCEEDED", 0, "succeeded", 0),
        ("FAILED", 3, "failed", 3),
        ("FAILED", None, "failed", 1),
        ("FAILED", 130, "stopped", 130),
        ("STOPPED", None, "stopped", 130),
    ],
)
def test_rays_words_and_the_status_of_a_command_that_was_attended(
    state: str, code: int | None, expected: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "2026-11-28 11:19:33,994\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    log = [own, "Running entrypoint for job a: python -m x\n", "one\ntw", "o\n", "2026 INFO job_manager.py:1 -- x\nend"]
    jobs, said = ray_jobs(Client(state, code, log), monkeypatch), list[str]()
    assert jobs.attend(Errand("a", ("x",)), "near", said.append) == status
    assert said == ["one\n", "two\n", "2026 INFO job_manager.py:1 -- x\n", "end"], "whole lines, and none of Ray's own"
    assert jobs.status("a") == Job("a", expected, "", code)  # type: ignore[arg-type]


def test_a_command_that_nobody_reads_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("SUCCEEDED", 0, ["one\n", "two\n"])

    def closed(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        ray_jobs(client, monkeypatch).attend(Errand("a", ("x",)), "near", closed)
    assert client.stopped == ["a"]


def test_a_note_opens_the_same_backend_again() -> None:
    record = json.loads(json.dumps(Machines(DEMAND, "data").record()))
    again = Machines.of(record)
    assert again is not None
    assert again.volume == "data"
    assert (again.demand.text, again.demand.sets, again.demand.secrets) == ("", ("a=1",), ("A_TOKEN",))
    assert isinstance(noted_backend(Note("two", "slurm://gpu", "/s", "7", record)), SlurmJobs)
    assert noted_backend(Note("two", "kuberay://team", "/s", "7", record)).place == "KubeRay in team"
    assert noted_backend(Note("two", "", "/s", "7")).inside is None
    assert noted_backend(Note("two", "head:1", "/s", "7")).inside == "head:1"
