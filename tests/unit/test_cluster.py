"""How trials fit on nodes, and what an address may be; no Ray."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from pathlib import Path

import pytest

from cluster import local
from cluster.base import ClusterError, Node, Placement, place
from cluster.local import refuse_address, refuse_silence
from cluster.token import write_private


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "most", "expected"),
    [
        ([Node(2)], "auto", "auto", None, Placement(1, 2.0, 0.0)),
        ([Node(2)], "auto", "auto", 2, Placement(2, 1.0, 0.0)),
        ([Node(2)], "auto", "auto", 1, Placement(1, 2.0, 0.0)),
        ([Node(2)], 1.0, "auto", None, Placement(2, 1.0, 0.0)),
        ([Node(2)], 1.0, 0.0, 1, Placement(1, 1.0, 0.0)),
        ([Node(2)], "auto", "auto", 3, Placement(3, 0.6666, 0.0)),
        ([Node(64)], "auto", "auto", None, Placement(16, 4.0, 0.0)),
        ([Node(64)], "auto", "auto", 2, Placement(2, 32.0, 0.0)),
        ([Node(16, 4)], "auto", "auto", None, Placement(4, 4.0, 1.0)),
        ([Node(16, 4)], "auto", "auto", 2, Placement(2, 8.0, 1.0)),
        ([Node(16, 1)], "auto", 0.5, None, Placement(2, 8.0, 0.5)),
        ([Node(16, 4)], 1.0, 2.0, None, Placement(2, 1.0, 2.0)),
        ([Node(4), Node(4)], 2.0, 0.0, None, Placement(4, 2.0, 0.0)),
        ([Node(4), Node(4)], "auto", "auto", 4, Placement(4, 2.0, 0.0)),
        ([Node(8, 1), Node(8)], "auto", "auto", None, Placement(1, 8.0, 1.0)),
    ],
)
def test_trials_fit(nodes, cpus, gpus, most, expected):
    assert place(nodes, cpus, gpus, most) == expected


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7, 64])
@pytest.mark.parametrize("nodes", [[Node(2)], [Node(6, 2)], [Node(3), Node(8)], [Node(64, 8), Node(32)]])
def test_what_auto_gives_always_fits(nodes, most):
    placed = place(nodes, "auto", "auto", most)
    assert 1 <= placed.slots <= most
    assert placed.slots * placed.cpus <= sum(node.cpus for node in nodes) + 1e-6
    assert placed.slots * placed.gpus <= sum(node.gpus for node in nodes) + 1e-6


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "said"),
    [
        ([Node(2)], 4.0, 0.0, "resources.cpus: 4 is more than any node has; legal: up to 2, or auto"),
        ([Node(2)], "auto", 1.0, "resources.gpus: 1 is more than any node has; legal: 0 or auto"),
        ([Node(2), Node(1, 2)], 2.0, 1.0, "no single node has 2 CPUs and 1 GPUs together"),
        ([], 1.0, 0.0, "no living node"),
    ],
)
def test_what_can_never_run_is_refused(nodes, cpus, gpus, said):
    with pytest.raises(ClusterError, match=said.replace(".", r"\.")):
        place(nodes, cpus, gpus, None)


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "most", "workers", "expected"),
    [
        ([Node(2)], 1.0, 0.0, None, 2, Placement(1, 1.0, 0.0, 2)),
        ([Node(2)], "auto", "auto", None, 2, Placement(1, 1.0, 0.0, 2)),
        ([Node(32, 4)], "auto", 1.0, None, 4, Placement(1, 8.0, 1.0, 4)),
        ([Node(32, 4)], "auto", 1.0, None, 2, Placement(2, 8.0, 1.0, 2)),
        ([Node(32, 4)], "auto", 1.0, 1, 2, Placement(1, 16.0, 1.0, 2)),
        ([Node(16, 2), Node(16, 2)], "auto", "auto", None, 4, Placement(1, 8.0, 1.0, 4)),
        ([Node(16, 3), Node(16, 3)], 1.0, 1.0, None, 4, Placement(1, 1.0, 1.0, 4)),
        ([Node(3), Node(3), Node(3)], 2.0, 0.0, None, 3, Placement(1, 2.0, 0.0, 3)),
    ],
)
def test_workers_of_a_trial_fit_over_nodes(nodes, cpus, gpus, most, workers, expected):
    assert place(nodes, cpus, gpus, most, workers) == expected


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "workers", "said"),
    [
        (
            [Node(2)],
            1.0,
            0.0,
            3,
            "resources.workers: a trial needs 3 workers of 1 CPU, and the cluster (2 CPUs + 0 GPUs) ",
        ),
        ([Node(16, 2)], "auto", 1.0, 4, "resources.gpus: a trial needs 4 workers of "),
        ([Node(16, 2)], "auto", 1.0, 4, "has room for 2; legal: up to 2"),
    ],
)
def test_workers_that_never_run_together_are_refused(nodes, cpus, gpus, workers, said):
    with pytest.raises(ClusterError, match=re.escape(said)):
        place(nodes, cpus, gpus, None, workers)


def test_what_a_trial_has_in_words():
    placed = [Placement(1, 2.0, 0.0), Placement(1, 1.0, 0.5), Placement(1, 4.0, 1.0, 4)]
    assert [one.each for one in placed] == ["2 CPUs", "1 CPU and 0.5 GPUs", "4 workers of 4 CPUs and 1 GPU"]


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:", ":6379", "head:port"])
def test_addresses_that_cannot_carry_a_sweep(address):
    with pytest.raises(ClusterError, match="host:port"):
        refuse_address(address)


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.1:6379"])
def test_addresses_that_can(address):
    refuse_address(address)


def test_folders_are_private_and_short(monkeypatch, tmp_path):
    deep = tmp_path / ("x" * 40)
    deep.mkdir()
    monkeypatch.setattr(local.tempfile, "gettempdir", lambda: str(deep))
    folder, lock = local._private_folder()
    try:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder)) <= local.LONGEST_FOLDER
    finally:
        os.close(lock)
        local.shutil.rmtree(folder)


def test_only_folders_of_dead_processes_are_swept(monkeypatch, tmp_path):
    monkeypatch.setattr(local.tempfile, "gettempdir", lambda: str(tmp_path))
    dead, living, other = (tmp_path / f"stockpot-{name}" for name in ("deaddead", "livelive", "x"))
    for folder in (dead, living, other):
        folder.mkdir()
        (folder / "lock").touch()
    held = os.open(living / "lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        local._sweep_leftovers()
    finally:
        os.close(held)
    assert [folder.exists() for folder in (dead, living, other)] == [False, True, True]


def test_a_token_file_is_readable_by_its_owner_alone(tmp_path):
    write_private(tmp_path / "token", "secret")
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("STOCKPOT_A", "1")
    monkeypatch.delenv("STOCKPOT_B", raising=False)
    before = local._set({"STOCKPOT_A": "", "STOCKPOT_B": "2"})
    assert ("STOCKPOT_A" in os.environ, os.environ["STOCKPOT_B"]) == (False, "2")
    local._restore(before)
    assert (os.environ["STOCKPOT_A"], "STOCKPOT_B" in os.environ) == ("1", False)


def test_the_longest_folder_leaves_room_for_the_sockets():
    socket = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert local.LONGEST_FOLDER + len(socket) <= 107
    assert Path("/tmp").is_dir()


def test_nobody_listening_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refuse_silence(f"127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=f"can't reach the Ray cluster at 127.0.0.1:{port}: .*is it running"):
        refuse_silence(f"127.0.0.1:{port}")
    refuse_silence("auto")


def test_a_node_that_times_out_at_its_start_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise Exception("The current node timed out during startup.\nSee the logs.")

    monkeypatch.setattr(local, "_start", start)
    with pytest.raises(
        ClusterError, match=r"^can't reach Ray on this machine: The current node timed out during startup\.$"
    ):
        local.connect(None, cpus=1)


def test_what_ray_says_of_lost_nodes_stays_out_of_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the stack of a node that ended into what may be JSON."""
    from ray._private import worker

    monkeypatch.setattr(worker, "_worker_logs_enabled", True)
    shown = [True, False]
    for number, wanted in enumerate(shown):
        worker.print_to_stdstream(
            {"lines": [f"Raylet {number} is terminated"], "pid": "raylet", "is_err": False}, False
        )
        assert bool(capsys.readouterr().out) == wanted
        local._hush()
