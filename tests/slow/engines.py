"""A sweep that is driven in the test's own process: its ledger with the first events, and the engine on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sweeps.engine import Engine
from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep


@contextlib.contextmanager
def begun(loaded: LoadedSweep, slots: int) -> Iterator[Engine]:
    """The engine of a new sweep; it and its ledger are closed at the end."""
    with contextlib.closing(Ledger.create(loaded.paths.root)) as ledger:
        body = {"name": loaded.spec.name, "spec": loaded.record(), "versions": {}, "space": {}}
        ledger.append([Event("sweep_created", body)])
        ledger.append([Event("driver_started", {"pid": os.getpid(), "host": "here", "version": ""})])
        with contextlib.closing(Engine(loaded, ledger, loaded.paths, slots)) as engine:
            yield engine
