"""A small machine in place of remote storage: files in memory behind fsspec, that refuse, hang up or vanish where they are told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import sweeps.riding
import sweeps.storage_lease
from evaluators.base import Report
from pipelines.finetune.checkpoint import placing, write_complete
from sweeps.driving import driving
from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.schemes import SCHEMES, Scheme
from sweeps.storage import StorageError
from sweeps.trial import Attempt, Run

URL = "s3://bucket/runs"


class CloudFiles(MemoryFileSystem):
    """Memory that a fault can be put in front of: `fault(verb, path)` may raise, before anything is done.

    `calls` has what was asked, as (verb, path).
    """

    protocol = "stockpot-cloud"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    calls: ClassVar[list[tuple[str, str]]] = []
    fault: Callable[[str, str], None] | None = None

    def _met(self, verb: str, path: str) -> None:
        CloudFiles.calls.append((verb, path))
        if CloudFiles.fault is not None:
            CloudFiles.fault(verb, path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        self._met("write", path)
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        super().pipe_file(path, value, **more)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **more: Any) -> bytes:
        self._met("read", path)
        return super().cat_file(path, start, end, **more)

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        self._met("write", rpath)
        data = Path(lpath).read_bytes()
        for _ in data:
            more["callback"].relative_update(1)
        super().pipe_file(rpath, data)

    def get_file(self, rpath: str, lpath: str, **more: Any) -> None:
        self._met("read", rpath)
        Path(lpath).write_bytes(super().cat_file(rpath))

    def find(self, path: str, **more: Any) -> Any:
        self._met("list", path)
        return super().find(path, **more)

    def rm_file(self, path: str) -> None:
        self._met("remove", path)
        super().rm_file(path)

    def modified(self, path: str) -> datetime:
        self._met("look", path)
        return super().modified(path)


class Cloud:
    """What tests hold: the files by name under `s3://bucket/runs/toy`, and the fault."""

    root = "/bucket/runs/toy/"

    @property
    def names(self) -> list[str]:
        return sorted(path.removeprefix(self.root) for path in CloudFiles.store if path.startswith(self.root))

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [(verb, path.removeprefix(self.root[1:])) for verb, path in CloudFiles.calls]

    def read(self, name: str) -> bytes:
        found: bytes = CloudFiles.store[self.root + name].getvalue()
        return found

    def write(self, name: str, data: bytes) -> None:
        MemoryFileSystem.pipe_file(
            fsspec.filesystem("stockpot-cloud", skip_instance_cache=True), self.root + name, data
        )

    def forget(self, *names: str) -> None:
        for name in names:
            del CloudFiles.store[self.root + name]

    @property
    def segments(self) -> list[str]:
        return [name for name in self.names if name.startswith("ledger/")]

    @property
    def reported(self) -> list[int]:
        """Resources of the reports in the segments, in their order."""
        lines = [json.loads(line) for name in self.segments for line in self.read(name).splitlines()]
        return [line["body"]["resource"] for line in lines if line.get("event") == "reported"]

    def breaks(self, fault: Callable[[str, str], None] | None) -> None:
        CloudFiles.fault = staticmethod(fault) if fault is not None else None


def raising(error: Exception, *verbs: str, about: str = "") -> Callable[[str, str], None]:
    """A fault that raises at these verbs (none: at all) on paths that hold a text."""

    def fault(verb: str, path: str) -> None:
        if (not verbs or verb in verbs) and about in path:
            raise error

    return fault


def make_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cloud:
    """Put the machine in the place of S3, and this process on a machine of its own."""
    fsspec.register_implementation("stockpot-cloud", CloudFiles, clobber=True)
    monkeypatch.setattr(sweeps.riding, "LOOK_SECONDS", 0.005)
    monkeypatch.setattr(sweeps.riding, "AGAIN_SECONDS", (0.005,))
    monkeypatch.setattr(sweeps.riding, "END_SECONDS", 60.0)
    monkeypatch.setattr(sweeps.storage_lease, "ALIVE_SECONDS", 0.005)
    CloudFiles.store, CloudFiles.pseudo_dirs, CloudFiles.calls, CloudFiles.fault = {}, [""], [], None
    monkeypatch.setitem(SCHEMES, "s3", Scheme("fsspec", "s3", (), _open, "AWS_ACCESS_KEY_ID"))
    machine(monkeypatch, tmp_path / "one")
    return Cloud()


def _open() -> Any:
    return fsspec.filesystem("stockpot-cloud", skip_instance_cache=True)


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> SweepPaths:
    """Be on a machine with folders of its own; the sweep's paths there."""
    monkeypatch.setenv("STOCKPOT_WORK", str(folder / "work"))
    monkeypatch.setenv("STOCKPOT_CACHE", str(folder / "cache"))
    return SweepPaths.of(URL, "toy")


RUN = "0000-aaaaaaaa/seed-0"


def write_checkpoint(paths: SweepPaths, resource: int, text: str = "weights") -> Path:
    """A whole checkpoint of the one run."""
    place = paths.checkpoint(Attempt(Run.parse(RUN), 0), resource)
    with placing(place) as folder:
        (folder / "model.safetensors").write_text(f"{text} at {resource}")
        (folder / "state.json").write_text("{}")
        write_complete(folder, Report(resource, (), {}, place.name))
    return place


def begin(paths: SweepPaths) -> Ledger:
    """A sweep with one run on its way."""
    ledger = Ledger.create(paths.root, durable=False)
    spec = {"spec": {"name": "toy", "storage": URL}, "format": 1}
    config = {"type": "custom", "kwargs": {"x": 1}}
    lease = {
        "lease": "l0",
        "run": RUN,
        "attempt": 0,
        "from_resource": 0,
        "from_checkpoint": None,
        "milestones": [1, 3, 9],
        "target": 9,
        "changes": None,
    }
    ledger.append(
        [
            Event("sweep_created", {"name": "toy", "spec": spec, "versions": {}, "space": {}}),
            Event("driver_started", {"pid": 1, "host": "h", "version": "0"}),
            Event(
                "suggested", {"trial": RUN.split("/")[0], "order": 0, "config": config, "parameters": {}, "choices": {}}
            ),
            Event("lease_started", lease),
        ]
    )
    return ledger


def report(paths: SweepPaths, ledger: Ledger, resource: int, *, saved: bool = True) -> None:
    """A report with its checkpoint, in a segment of its own."""
    if saved:
        write_checkpoint(paths, resource)
    body = {"lease": "l0", "run": RUN, "attempt": 0, "resource": resource, "scores": [], "telemetry": {}}
    ledger.append([Event("reported", {**body, "checkpoint": f"checkpoint-{resource}", "worker_seconds": 0.1})])
    ledger.ship(force=True)


def here() -> SweepPaths:
    """The sweep's paths on the machine that this process is on."""
    return SweepPaths.of(URL, "toy")


def silent(text: str) -> None:
    """Nobody listens."""


def bodies(root: Path) -> list[tuple[int, str, Any]]:
    """Everything in a ledger: seq, kind, body."""
    ledger = Ledger.read(root)
    found = [(event.seq, event.kind, event.body) for event in ledger.events()]
    ledger.drop()
    return found


def drive(
    *resources: int, say: Callable[[str], None] = silent, then: Callable[[], None] | None = None
) -> StorageError | None:
    """One driver on this machine: it begins or goes on, reports, and ends."""
    paths = here()
    with driving(paths, say) as driven:
        ledger = Ledger.open(paths.root) if paths.ledger.exists() else begin(paths)
        try:
            for resource in resources:
                report(paths, ledger, resource)
            if then is not None:
                then()
        finally:
            ledger.close()
    return driven.problem


def killed(cloud: Cloud, number: int) -> None:
    """What a driver leaves that was killed: a lease that nobody gave back."""
    cloud.forget(f"lease/{number:06d}.ended")


def place(paths: SweepPaths, resource: int) -> Path:
    """Where the one run's checkpoint lies."""
    return paths.run(Run.parse(RUN)) / "attempt-0" / f"checkpoint-{resource}"
