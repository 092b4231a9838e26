"""A backend in this process that really trains: leases one after another, calls at once."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from sweeps.failures import classify
from sweeps.load import LoadedSweep
from sweeps.loop import CallFailed, Later, Loop
from sweeps.paths import SweepPaths
from sweeps.worker import Setup, make_task, run_lease


class LocalBackend:
    """Implements `Backend` with one slot. `calls` is what was asked, `leases` what was trained; `fail` may raise before either."""

    slots = 1

    def __init__(self, loaded: LoadedSweep, paths: SweepPaths, setup: Setup) -> None:
        self.loaded, self.paths, self.setup = loaded, paths, setup
        self.calls: list[str] = []
        self.leases: list[str] = []
        self.fail: Callable[[str], None] = lambda what: None

    def run(self, loop: Loop) -> None:
        while not loop.over:
            loop.tick()
            lease = loop.ask()
            if lease is None:
                continue
            self.fail(lease.id)
            self.leases.append(lease.id)

            def report(report: Any, lease: Any = lease) -> None:
                if loop.report(lease.id, report) == "stop":
                    raise SystemExit

            try:
                run_lease(make_task(self.loaded, self.paths, lease, self.setup), report)
                loop.ended(lease.id)
            except SystemExit:
                loop.ended(lease.id)

    def call(self, function: str, payload: Mapping[str, Any], on_progress: Callable[[str], None] | None = None) -> Any:
        self.fail(function)
        self.calls.append(function)
        module, _, name = function.partition(":")
        try:
            return getattr(importlib.import_module(module), name)(payload)
        except RuntimeError as error:
            raise CallFailed(classify(error)) from error

    def start(self, function: str, payload: Mapping[str, Any]) -> Later:
        return Later(lambda on_progress: self.call(function, payload, on_progress))

    def close(self) -> None:
        pass
