"""Nodes that end by themselves are started again, a head that has ended ends the cluster; a head that is silent is noticed."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cluster import nodes
from cluster.base import ClusterError
from cluster.nodes import LocalNode, LocalNodes
from cluster.processes import _SESSION, _grouped, end
from cluster.watch import HeadWatch, NodeCount, answers
from sweeps.cli import main

RAY = """\
#!/bin/sh
case " $* " in *" --head "*) echo "Local node IP: 192.0.2.7";; esac
[ -e "$RAY_AUTH_TOKEN_PATH.broken" ] && { echo "no head there"; exit 1; }
echo "Ray runtime started."
exec sleep 60
"""
"""What `ray start --block` prints, and how it stays."""


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalNodes]:
    """A head and a node."""
    ray = tmp_path / "ray"
    ray.write_text(RAY)
    ray.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    made = LocalNodes(tmp_path / "token", cpus=1)
    made.start(2)
    yield made
    made.close()


SLOW = """\
#!/bin/sh
(sleep 60 &)
kill -INT $PPID
exec sleep 60
"""
"""A `ray start` that has begun something of its own when whoever started it is interrupted, and gets no further."""


def test_ctrl_c_while_a_node_starts_ends_what_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ray").write_text(SLOW)
    (tmp_path / "ray").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(nodes, "end", partial(end, rest=0.1))
    made: list[LocalNode] = []
    spawn = LocalNodes._spawn
    monkeypatch.setattr(LocalNodes, "_spawn", lambda self, port: made.append(spawn(self, port)) or made[-1])
    before = signal.getsignal(signal.SIGINT)
    assert main(["cluster", "up", "--nodes", "2"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert [node.process.returncode for node in made] == [-signal.SIGTERM], "the second one was not begun"
    assert not made[0].folder.exists()
    assert "interrupted" in (told := capsys.readouterr().out)
    assert told.endswith("all nodes have ended\n")
    assert not any(process.alive for process in _grouped(_SESSION).get(made[0].process.pid, []))


def kill(made: LocalNodes, place: int) -> None:
    process = made._nodes[place].process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_node_that_ended_is_started_again(two: LocalNodes) -> None:
    assert two.address.startswith("192.0.2.7:")
    assert two.mend() == []
    before = two._nodes[1].folder
    kill(two, 1)
    assert two.mend() == ["a node has ended by itself, and is started again"]
    assert two._nodes[1].process.poll() is None
    assert not before.exists()
    assert two.mend() == []


def test_one_that_does_not_come_back_is_tried_more_and_more_seldom(
    two: LocalNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(two, 1)
    assert two.mend()
    kill(two, 1)
    assert two.mend() == [], "the second try waits"
    monkeypatch.setattr(nodes, "PAUSE_SECONDS", 0.0)
    assert two.mend() == ["a node has ended by itself, and is started again (try 2)"]


def test_the_end_of_the_head_is_the_clusters(two: LocalNodes) -> None:
    kill(two, 0)
    with pytest.raises(ClusterError, match="the head has ended") as told:
        two.mend()
    assert "Ray runtime started" in str(told.value)


def test_a_node_that_does_not_start_is_an_error_and_leaves_nothing(two: LocalNodes) -> None:
    (two.token.parent / "token.broken").touch()
    other = LocalNodes(two.token, cpus=1, join=two.address)
    with pytest.raises(ClusterError, match="no head there"):
        other.start(1)
    assert other._nodes == []


def test_a_head_that_is_silent_is_lost_and_one_that_answers_is_not() -> None:
    gave_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        assert answers(address)
        watch = HeadWatch(address, gave_up.set, patience=0.05, every=0.01, grace=0.05)
        time.sleep(0.1)
        assert (watch.lost, watch.silent) == (False, 0.0)
    assert gave_up.wait(60), "the process that nobody closed it in hangs"
    assert watch.lost
    watch.close()


def test_the_leave_of_a_lost_head_is_bounded() -> None:
    gave_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = HeadWatch(f"127.0.0.1:{head.getsockname()[1]}", gave_up.set, patience=0.02, every=0.01, grace=0.05)
        with watch.bounded():
            pass
    until = time.monotonic() + 60
    while not watch.lost and time.monotonic() < until:
        time.sleep(0.005)
    watch.close()
    gave_up.clear()  # its own thread may have given up before it was closed, on a busy machine
    with watch.bounded():
        assert gave_up.wait(60), "it hangs"
    gave_up.clear()
    with watch.bounded():
        pass
    assert not gave_up.wait(0.08)


def test_a_question_that_fails_is_asked_again() -> None:
    given = iter([3, OSError("slow"), 2])

    def ask() -> int:
        answer = next(given, 2)
        if isinstance(answer, OSError):
            raise answer
        return answer

    count = NodeCount(ask, every=0.001)
    until = time.monotonic() + 60
    while not (found := count.news()) and time.monotonic() < until:
        time.sleep(0.001)
    assert found == ["lost 1 of 3 nodes; what ran there goes again elsewhere"]
    count.close()


def test_lost_and_new_nodes_are_told_once() -> None:
    there = [3]
    count = NodeCount(lambda: there[0], every=0.001)
    assert count.news() == []
    for now, told in ((2, "lost 1 of 3 nodes; what ran there goes again elsewhere"), (4, "4 nodes now, 2 more")):
        there[0] = now
        until = time.monotonic() + 60
        while not (found := count.news()) and time.monotonic() < until:
            time.sleep(0.001)
        assert found == [told]
    assert count.news() == []
    count.close()


def test_what_is_odd_about_nodes_that_joined_is_told() -> None:
    there = [1]
    said = [OSError("slow"), ["trl is missing on B"], ClusterError("torch is 1 on A and 2 on B\ninstall the same")]

    def look() -> list[str]:
        found = said.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    count = NodeCount(lambda: there[0], every=0.001, joined=look)
    for now, told in ((2, ["trl is missing on B"]), (1, []), (3, ["torch is 1 on A and 2 on B", "install the same"])):
        there[0], found = now, []
        until = time.monotonic() + 60
        while len(found) < 1 + len(told) and time.monotonic() < until:
            found += count.news()
            time.sleep(0.001)
        assert found[1:] == told
    count.close()
    assert not said
