"""Processes below one: found, waited for, ended; an id that is somebody else's now is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.processes import Process, await_end, below, end, main


@pytest.fixture
def tree() -> Iterator[tuple[subprocess.Popen[str], list[Process]]]:
    """A shell that became a `sleep`, with another one below it that no longer hears TERM."""
    script = "(trap '' TERM; exec sleep 60) & echo; exec sleep 60"
    root = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert root.stdout is not None
    root.stdout.readline()
    yield root, below(root.pid)
    end([root.pid], 0.0, 0.0)
    root.wait()
    root.stdout.close()


def test_what_was_started_is_found_at_every_depth(tree: tuple[subprocess.Popen[str], list[Process]]) -> None:
    root, inside = tree
    assert len(inside) == 1
    mine = {process.pid for process in below(os.getpid())}
    assert mine >= {root.pid, inside[0].pid}


def test_the_end_of_a_process_takes_what_it_leaves_behind(tree: tuple[subprocess.Popen[str], list[Process]]) -> None:
    root, inside = tree
    end([root.pid], 5.0, 0.05)
    assert root.wait() == -15, "it was asked, not killed"
    assert await_end(inside, 0.0) == []


def test_one_that_does_not_hear_is_killed() -> None:
    deaf = subprocess.Popen(
        [sys.executable, "-S", "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert deaf.stdout is not None
    deaf.stdout.readline()
    end([deaf.pid], 0.05, 0.0)
    assert deaf.wait() == -9
    deaf.stdout.close()


def test_another_process_with_the_same_id_is_left_alone(tree: tuple[subprocess.Popen[str], list[Process]]) -> None:
    _, (inside,) = tree
    assert inside.alive
    assert not Process(inside.pid, inside.began + 1).alive


def test_an_id_that_is_nobodys_is_passed_over() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert main([str(gone.pid)]) == 0
