"""What rides to remote storage while a sweep runs: the rider sends a working folder on in the background.

The working folder is the truth; the storage is a copy that another machine can go on from. Segments of the ledger go in their
order, each after the checkpoints and soups that its events speak of, so that the copy never names weights that it lacks. A
folder's files go before its marker (`complete.json`, `soup.json`): without its marker it does not exist. What an event says was
deleted is removed after that event has gone. Nothing is ever written over a segment. What the storage has lost goes again: the
rider compares it with what lies here when it begins, when the bucket was gone, and at its end.

What can't be sent waits and is tried again; the sweep goes on. What still waits at the end is said, and stays in the working
folder, from where the next driver on this machine sends it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping

from sweeps.bundles import Bundle, bundles, files_in, told_of
from sweeps.paths import SweepPaths
from sweeps.records import write_aside
from sweeps.segments import Segments, SegmentsDamaged, segment_lines, segment_name, segment_number
from sweeps.snapshots import send_snapshot
from sweeps.storage import Storage, StorageError, StorageKind
from sweeps.storage_lease import StorageLease

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


class Rider:
    """Sends a working folder on, in a thread of its own, until `close`.

    Args:
        storage: the sweep's.
        paths: its working folder.
        lease: the right to write there.
        say: told once what goes wrong, and once that it is mended.
        doomed: folders that lie in the storage and were deleted, as the ledger says.
    """

    def __init__(
        self,
        storage: Storage,
        paths: SweepPaths,
        lease: StorageLease,
        say: Callable[[str], None],
        doomed: Iterable[Bundle] = (),
    ) -> None:
        self._storage = storage
        self._paths = paths
        self._lease = lease
        self._say = say
        self._doomed = {bundle.folder: bundle for bundle in doomed}
        self._segments = Segments(paths.segments)
        self._texts: dict[str, tuple[int, int]] = {}
        self._texts_at = float("-inf")
        self._there: dict[str, int] | None = None
        self._last = min(self._segments.numbers(), default=1) - 1
        self._snapshot = 0
        self._behind = False  # whether what came before the segments that lie here is in the live ledger alone
        self._failures = 0
        self._complaint: StorageError | None = None
        self._sent = 0
        self._over = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._ride, name="stockpot-rider", daemon=True)
        self._thread.start()

    def close(self) -> StorageError | None:
        """Send what is left; None when everything is there, else what stands in the way.

        Waits as long as anything gets on, and a minute where nothing does.
        """
        self._over.set()
        seconds = END_SECONDS
        seen, until = self._sent, time.monotonic() + seconds
        try:
            while self._thread.is_alive() and time.monotonic() < until:
                self._thread.join(0.1)
                if self._sent != seen:
                    seen, until = self._sent, time.monotonic() + seconds
        except KeyboardInterrupt:
            self._note()
            raise
        finally:
            self._closed = True
        if self._complaint is None and (self._thread.is_alive() or self.waiting()):
            self._complaint = StorageError("unreachable", f"{self._storage.url}: no answer for {seconds:g} s")
        self._note()
        return self._complaint

    def waiting(self) -> list[int]:
        """Numbers of the segments that are not in the storage yet."""
        return list(self._segments.after(self._last))

    def _ride(self) -> None:
        try:
            self._keep_sending()
        except Exception as error:  # a thread's last words: unsaid, it would pass for a storage that does not answer
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            self._complain(StorageError("damaged", f"{self._paths.root}: {what}"))

    def _keep_sending(self) -> None:
        until = float("inf")
        while not self._lease.lost:
            ending = self._over.is_set()
            if ending and until == float("inf"):
                until = time.monotonic() + END_SECONDS
            before = self._sent
            try:
                self._round(ending)
                self._mended()
                if ending:
                    return
            except (StorageError, SegmentsDamaged, OSError) as error:
                typed = self._typed(error)
                self._complain(typed)
                if typed.kind == "gone":
                    self._there = None  # one that is made again is empty
                if self._sent != before:
                    until = time.monotonic() + END_SECONDS
                if typed.kind in ("taken", "damaged") or (ending and time.monotonic() > until):
                    return
            pause = AGAIN_SECONDS[min(self._failures, len(AGAIN_SECONDS)) - 1] if self._failures else LOOK_SECONDS
            if self._over.wait(pause) and ending:
                time.sleep(min(pause, 1.0))
        self._complain(StorageError("taken", f"{self._storage.url}: {self._lease.lost}"))

    def _typed(self, error: StorageError | SegmentsDamaged | OSError) -> StorageError:
        if isinstance(error, StorageError):
            return error
        if isinstance(error, SegmentsDamaged):
            return StorageError("damaged", f"{self._paths.segments}: {error}")
        return StorageError("unreachable", f"{self._paths.root}: {error}")

    def _round(self, ending: bool) -> None:
        """Send what waits now; at the end only once the storage has said again what it has."""
        if self._there is None or ending:
            self._there = self._look()
        if self._behind:
            for bundle in told_of(self._paths):
                if not bundle.gone:
                    self._send_bundle(bundle, self._there)
        for number in self._segments.after(self._last):
            self._send_segment(number, self._there)
        due = self._last - self._snapshot >= SNAPSHOT_SEGMENTS or (ending and self._last > self._snapshot)
        if due or self._behind:
            until = int(self._segments.header(self._last)["until"])
            send_snapshot(self._storage, self._paths, self._last, until, self._refuse_lost)
            self._snapshot, self._behind = self._last, False
        if ending or time.monotonic() - self._texts_at >= TEXT_SECONDS:
            self._refuse_lost()
            self._send_texts()
            self._texts_at = time.monotonic()
        for bundle in list(self._doomed.values()):
            self._remove(bundle, self._there)

    def _look(self) -> dict[str, int]:
        """What the storage has. From the first segment on that lies here and not there, everything goes again.

        A storage that was emptied, or lost something, so gets back what it had: segments with the weights that they speak of.
        """
        there = self._storage.files()
        sent = {number for name in there if (number := segment_number(name))}
        here = self._segments.numbers()
        missing = [number for number in here if number not in sent]
        self._last = missing[0] - 1 if missing else max([*sent, *here], default=0)
        self._behind = bool(missing) and self._last > 0 and self._last not in sent
        return there

    def _refuse_lost(self) -> None:
        if not self._lease.mine():
            raise StorageError("taken", f"{self._storage.url}: {self._lease.lost}")

    def _send_segment(self, number: int, there: dict[str, int]) -> None:
        """A segment with what its events speak of."""
        name, data = segment_name(number), self._segments.path(number).read_bytes()
        found = {
            bundle.folder: bundle  # of a folder that was made and deleted, or the other way round, the last counts
            for line in segment_lines(name, data)
            if "event" in line
            for bundle in bundles(line["event"], line["body"], self._paths)
        }
        for bundle in found.values():
            if not bundle.gone:
                self._send_bundle(bundle, there)
        self._refuse_lost()
        if not self._storage.put_new(name, data) and self._storage.get(name) != data:
            raise StorageError(
                "taken",
                f"{self._storage.url}: {name} is there already and says something else: another driver wrote it",
            )
        there[name] = len(data)
        self._doomed |= {bundle.folder: bundle for bundle in found.values() if bundle.gone}
        self._last = number
        self._moved()

    def _send_bundle(self, bundle: Bundle, there: dict[str, int]) -> None:
        """A folder's files, then its marker; nothing where it is there, or was deleted since."""
        if bundle.folder in self._doomed:
            self._remove(bundle, there)  # it was made again
        folder = self._paths.root / bundle.folder
        if bundle.mark in there or not (folder / bundle.marker).is_file():
            return
        files = [path for path in files_in(folder) if path != folder / bundle.marker]
        try:
            for path in [*files, folder / bundle.marker]:
                self._refuse_lost()
                name = path.relative_to(self._paths.root).as_posix()
                size = path.stat().st_size
                self._storage.send(path, name, self._moved)
                there[name] = size
                self._moved()
        except FileNotFoundError:  # deleted meanwhile: a later event says so, and removes what was sent
            return

    def _remove(self, bundle: Bundle, there: dict[str, int]) -> None:
        """A folder that was deleted, its marker first; it stays on the list until all of it is gone."""
        names = sorted(name for name in there if name.startswith(f"{bundle.folder}/"))
        for name in sorted(names, key=lambda name: name != bundle.mark):
            self._refuse_lost()
            self._storage.delete([name])
            del there[name]
        self._doomed.pop(bundle.folder, None)

    def _moved(self) -> None:
        """Something gets on: a file, or a piece of a large one."""
        self._sent += 1

    def _send_texts(self) -> None:
        """The resolved sweep, logs and pages, where they changed."""
        paths = self._paths
        logs = sorted(paths.logs.glob("*.log")) if paths.logs.is_dir() else []
        for path in (paths.resolved_spec, paths.report, paths.checklist, *logs, *sorted(paths.trackers.glob("*.json"))):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                name, mark = path.relative_to(paths.root).as_posix(), (found.st_mtime_ns, found.st_size)
                if self._texts.get(name) != mark:
                    self._storage.send(path, name, self._moved)
                    self._texts[name] = mark

    def _complain(self, error: StorageError) -> None:
        if self._closed:  # what is left was told already, and the next driver may be at it
            return
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
            write_aside(self._paths.unsent, json.dumps(record))
