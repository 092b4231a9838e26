"""A sign of life from inside a task, so that whoever runs it knows one that takes long from one that hangs.

`beat` is called at every optimizer step and every batch that a model reads. Pipelines of one's own may call it too:

    from pipelines.pulse import beat

    for step in range(1, 1_000_001):
        ...
        beat(step)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[int | None], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


def beat(at: int | None = None) -> None:
    """Say that the task goes on. Cheap; without effect in threads in which nobody listens.

    Args:
        at: the resource that it has come to, where that is known.
    """
    listener = _LISTENER.get()
    if listener is not None:
        listener(at)


@contextmanager
def listened(listener: Listener) -> Iterator[None]:
    """Have what runs in this thread heard."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
