"""What rides to remote storage while a sweep runs: the rider sends a working folder on in the background.

The working folder is the truth; the storage is a copy that another machine can go on from. Segments of the ledger go in their
order, each after the checkpoints and soups that its events speak of, so that the copy never names weights that it lacks. A
folder's files go before its marker (`complete.json`, `soup.json`): without its marker it does not exist. What an event says was
deleted is removed after that event has gone. Nothing is ever written over a segment.

What can't be sent waits and is tried again; the sweep goes on. What still waits at the end is said, and stays in the working
folder, from where the next driver on this machine sends it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.paths import SweepPaths
from sweeps.segments import Segments, SegmentsDamaged
from sweeps.snapshots import send_snapshot
from sweeps.storage import Storage, StorageError, StorageKind
from sweeps.storage_lease import StorageLease
from sweeps.trial import Attempt, Run

COMPLETE, SOUP = "complete.json", "soup.json"
LOOK_SECONDS = 0.5
"""How often the rider looks for new segments."""
TEXT_SECONDS = 20.0
"""How often logs and pages go, where they changed."""
AGAIN_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses after failures in a row."""
SNAPSHOT_SEGMENTS = 200
"""A snapshot of the ledger goes after so many segments, and at the end."""
_MENDED = ", and what waits is sent once that is mended"
_AFTER: Mapping[StorageKind, str] = {
    "gone": _MENDED,
    "denied": _MENDED,
    "full": _MENDED,
    "unreachable": _MENDED,
    "taken": "; nothing more is sent",
    "damaged": "; nothing more is sent until the next resume",
}
END_SECONDS = 60.0
"""How long a driver's end waits for a storage that does not take anything."""


@dataclass(frozen=True)
class Bundle:
    """A folder that rides whole or not at all.

    Attributes:
        folder: relative to the sweep's.
        marker: the file that goes last.
        gone: whether it was deleted instead.
    """

    folder: str
    marker: str
    gone: bool = False


def bundles(kind: str, body: Mapping[str, Any], paths: SweepPaths) -> Iterator[Bundle]:
    """The folders that an event speaks of, made or deleted."""
    if kind == "phase":
        yield from bundles(body["kind"], body["body"], paths)
    elif kind == "soup_finished" and body.get("folder"):
        yield Bundle(body["folder"], SOUP)
    elif kind in ("reported", "decided") and body.get("checkpoint"):
        attempt = body.get("checkpoint_attempt", body["attempt"])
        yield Bundle(_checkpoint(paths, body["run"], attempt, body["checkpoint"]), COMPLETE)
    elif kind == "checkpoint_deleted":
        folder = paths.checkpoint(Attempt(Run.parse(body["run"]), body["attempt"]), body["resource"])
        yield Bundle(folder.relative_to(paths.root).as_posix(), COMPLETE, gone=True)


def _checkpoint(paths: SweepPaths, run: str, attempt: int, name: str) -> str:
    return (paths.attempt(Attempt(Run.parse(run), attempt)) / name).relative_to(paths.root).as_posix()


class Rider:
    """Sends a working folder on, in a thread of its own, until `close`.

    Args:
        storage: the sweep's.
        paths: its working folder.
        lease: the right to write there.
        say: told once what goes wrong, and once that it is mended.
    """

    def __init__(self, storage: Storage, paths: SweepPaths, lease: StorageLease, say: Callable[[str], None]) -> None:
        self._storage = storage
        self._paths = paths
        self._lease = lease
        self._say = say
        self._segments = Segments(paths.segments)
        self._texts: dict[str, tuple[int, int]] = {}
        self._texts_at = float("-inf")
        self._there: dict[str, int] | None = None
        self._last = 0
        self._snapshot = 0
        self._failures = 0
        self._complaint: StorageError | None = None
        self._sent = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ride, name="stockpot-rider", daemon=True)
        self._thread.start()

    def close(self) -> StorageError | None:
        """Send what is left; None when everything is there, else what stands in the way.

        Waits as long as anything gets on, and a minute where nothing does.
        """
        self._over.set()
        seconds = END_SECONDS
        seen, until = self._sent, time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(0.1)
            if self._sent != seen:
                seen, until = self._sent, time.monotonic() + seconds
        if self._complaint is None and (self._thread.is_alive() or self.waiting()):
            self._complaint = StorageError("unreachable", f"{self._storage.url}: no answer for {seconds:g} s")
        self._note()
        return self._complaint

    def waiting(self) -> list[int]:
        """Numbers of the segments that are not in the storage yet."""
        return [number for number in self._segments.numbers() if number > self._last]

    def _ride(self) -> None:
        until = float("inf")
        while not self._lease.lost:
            ending = self._over.is_set()
            if ending and until == float("inf"):
                until = time.monotonic() + END_SECONDS
            try:
                before = self._sent
                self._round(ending)
                self._mended()
                if ending:
                    return
            except (StorageError, SegmentsDamaged, OSError) as error:
                typed = (
                    error
                    if isinstance(error, StorageError)
                    else StorageError("damaged", f"{self._paths.root}: {error}")
                )
                self._complain(typed)
                if self._sent != before:
                    until = time.monotonic() + END_SECONDS
                if typed.kind in ("taken", "damaged") or (ending and time.monotonic() > until):
                    return
            pause = AGAIN_SECONDS[min(self._failures, len(AGAIN_SECONDS)) - 1] if self._failures else LOOK_SECONDS
            if self._over.wait(pause) and ending:
                time.sleep(min(pause, 1.0))
        self._complain(StorageError("taken", f"{self._storage.url}: {self._lease.lost}"))

    def _round(self, ending: bool) -> None:
        """Send what waits now."""
        if self._there is None:
            there = self._storage.files()
            self._last = max((int(Path(name).stem) for name in there if _is_segment(name)), default=0)
            self._there = there
        for number in self.waiting():
            if not self._lease.mine():
                raise StorageError("taken", f"{self._storage.url}: {self._lease.lost}")
            self._send_segment(number)
        if self._last - self._snapshot >= SNAPSHOT_SEGMENTS or (ending and self._last > self._snapshot):
            send_snapshot(self._storage, self._paths, self._last, int(self._segments.header(self._last)["until"]))
            self._snapshot = self._last
        if ending or time.monotonic() - self._texts_at >= TEXT_SECONDS:
            self._send_texts()
            self._texts_at = time.monotonic()

    def _send_segment(self, number: int) -> None:
        """A segment with what its events speak of."""
        found = [
            bundle
            for line in self._segments.lines(number)
            if "event" in line
            for bundle in bundles(line["event"], line["body"], self._paths)
        ]
        gone = {bundle.folder for bundle in found if bundle.gone}
        for bundle in found:
            if bundle.folder not in gone:
                self._send_bundle(bundle)
        name, data = f"ledger/{number:06d}.jsonl", self._segments.path(number).read_bytes()
        if not self._storage.put_new(name, data) and self._storage.get(name) != data:
            raise StorageError(
                "taken",
                f"{self._storage.url}: {name} is there already and says something else: another driver wrote it",
            )
        self._last = number
        self._sent += 1
        for bundle in found:
            if bundle.gone:
                self._remove(bundle)

    def _send_bundle(self, bundle: Bundle) -> None:
        """A folder's files, then its marker; nothing where it is there, or was deleted since."""
        there = self._there if self._there is not None else {}
        folder, mark = self._paths.root / bundle.folder, f"{bundle.folder}/{bundle.marker}"
        if mark in there or not (folder / bundle.marker).is_file():
            return
        files = [path for path in _files(folder) if path.name != bundle.marker or path.parent != folder]
        try:
            for path in [*files, folder / bundle.marker]:
                name = path.relative_to(self._paths.root).as_posix()
                size = path.stat().st_size
                self._storage.send(path, name)
                there[name] = size
                self._sent += 1
        except FileNotFoundError:  # deleted meanwhile: a later event says so, and removes what was sent
            return

    def _remove(self, bundle: Bundle) -> None:
        there = self._there if self._there is not None else {}
        names = sorted(name for name in there if name.startswith(f"{bundle.folder}/"))
        mark = f"{bundle.folder}/{bundle.marker}"
        for name in sorted(names, key=lambda name: name != mark):
            self._storage.delete([name])
            there.pop(name, None)

    def _send_texts(self) -> None:
        """The resolved sweep, logs and pages, where they changed."""
        paths = self._paths
        logs = sorted(paths.logs.glob("*.log")) if paths.logs.is_dir() else []
        for path in (paths.resolved_spec, paths.report, paths.checklist, *logs, *sorted(paths.trackers.glob("*.json"))):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                name, mark = path.relative_to(paths.root).as_posix(), (found.st_mtime_ns, found.st_size)
                if self._texts.get(name) != mark:
                    self._storage.send(path, name)
                    self._texts[name] = mark

    def _complain(self, error: StorageError) -> None:
        self._failures += 1
        before, self._complaint = self._complaint, error
        if before is None or before.kind != error.kind:
            self._say(f"storage: {error}; what was reported is safe in {self._paths.root}{_AFTER[error.kind]}")
            self._note()

    def _mended(self) -> None:
        if self._complaint is not None:
            self._say("storage: it takes what is sent again, and everything that waited is there")
        self._failures, self._complaint = 0, None

    def _note(self) -> None:
        """Leave beside the working folder what is not in the storage yet."""
        waiting = len(self.waiting())
        if self._complaint is None and not waiting:
            self._paths.unsent.unlink(missing_ok=True)
            return
        record = {"segments": waiting, "why": str(self._complaint or ""), "kind": getattr(self._complaint, "kind", "")}
        with contextlib.suppress(OSError):  # a full disk must not hide what stands in the way
            self._paths.unsent.write_text(json.dumps(record), encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    """Files of a folder that are no left-overs."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return sorted(path for path in found if ".work" not in path.relative_to(folder).parts)


def _is_segment(name: str) -> bool:
    path = Path(name)
    return path.parent.as_posix() == "ledger" and path.suffix == ".jsonl" and path.stem.isdigit()
