"""What workers tell each other beside numbers: turns, texts, and that one of them is gone. Threads stand for processes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import DistNetworkError, TCPStore

from pipelines.finetune import group as groups
from pipelines.finetune.group import ALONE, Group, connection_lost
from pipelines.stage import Rank, WorkerLost


@pytest.fixture
def store() -> Any:
    """A store's server, and its port; dropping the server is the death of the first process."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(8)
    port = listener.getsockname()[1]
    return [
        TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()),
        port,
    ]


def joined(store: Any, size: int) -> list[Group]:
    return [
        Group(rank, size, TCPStore("127.0.0.1", store[1], is_master=False, timeout=timedelta(seconds=20)))
        for rank in range(size)
    ]


def beside(act: Callable[[], Any]) -> Callable[[], Any]:
    """Run in a thread; what it returned or raised."""
    made: list[Any] = []

    def run() -> None:
        try:
            made.append(act())
        except BaseException as error:
            made.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:
        thread.join(20)
        return made[0]

    return result


def test_alone_nothing_is_waited_for() -> None:
    assert (ALONE.lead(lambda: 7), ALONE.sum([0.1, 3]), ALONE.gather("x")) == (7, [0.1, 3], ["x"])


def test_the_others_wait_for_the_first_ones_act(store: Any) -> None:
    first, second, third = joined(store, 3)
    waiting = [beside(lambda group=group: group.lead(lambda: pytest.fail("not theirs"))) for group in (second, third)]
    assert first.lead(lambda: 7) == 7
    assert [result() for result in waiting] == [None, None]


def test_an_end_is_everyones_end(store: Any) -> None:
    first, second = joined(store, 2)
    waiting = beside(lambda: second.lead(lambda: None))

    def end() -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        first.lead(end)
    assert isinstance(waiting(), SystemExit)


def test_a_failure_of_the_first_releases_the_others(store: Any) -> None:
    first, second = joined(store, 2)
    waiting = beside(lambda: second.lead(lambda: None))

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        first.lead(fail)
    assert isinstance(waiting(), WorkerLost)


def test_the_first_ones_death_ends_the_wait(store: Any) -> None:
    _, second = joined(store, 2)
    waiting = beside(lambda: second.lead(lambda: None))
    store[0] = None
    found = waiting()
    assert isinstance(found, WorkerLost)
    assert "first worker is gone" in str(found)


def test_what_is_broken_off_waits_no_longer_and_the_next_lease_waits_again(store: Any) -> None:
    first, second = joined(store, 2)
    for wait in (lambda: first.gather("x"), first.meet):
        waiting = beside(wait)
        groups.abort()
        assert isinstance(waiting(), WorkerLost)
    groups.begin_anew()
    waiting = beside(second.meet)
    first.meet()
    assert waiting() is None


def test_a_store_that_can_not_be_reached_is_a_lost_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any, **more: Any) -> None:
        raise DistNetworkError("The client socket has failed to connect")

    monkeypatch.setattr(groups.dist, "TCPStore", refuse)
    before = dict(os.environ)
    with pytest.raises(WorkerLost), groups.joined(Rank(1, 2, "127.0.0.1", 9), "cpu"):
        pytest.fail("nobody is there")
    assert dict(os.environ) == before


def test_texts_come_by_rank(store: Any) -> None:
    three = joined(store, 3)
    sent = [beside(lambda group=group: group.gather(f"from {group.rank}")) for group in three[1:]]
    assert three[0].gather("from 0") == ["from 0", "from 1", "from 2"]
    assert [result() for result in sent] == [[], []]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:47242"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (DistNetworkError("Failed to recv"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_a_lost_connection_is_told_from_other_errors(error: RuntimeError, lost: bool) -> None:
    assert connection_lost(error) is lost
