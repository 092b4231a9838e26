"""A trial's log: one JSON object a line, each with the sweep's, the trial's and the attempt's name, fit for any collector.

    {"time": "2026-11-27T09:12:03.512Z", "sweep": "qa", "trial": "0003-5ad5ee31", "seed": 0, "attempt": 0, "stream": "stderr",
     "text": "loss is nan"}

An attempt's first line has `event: began` with `from` (the resource it starts at), `pid` and `host` in place of a text. Lines
are written at once and straight to the file, so that what a process said before it was killed is there, and without the secrets
that the process knows. What a library in C or a program that was started writes past Python lands in the file as it is; readers
here give it the name of the attempt it stands under.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from sweeps.secret_values import masked

LONGEST_LINE = 100_000
"""Characters of a line at most; what is longer goes on in the next one."""
BEGAN = "began"


class NamedStream(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr` while a lease runs. One a process: loggers keep the stream they were made with.

    Args:
        name: `stdout` or `stderr`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._under: TextIO | None = None
        self._log: int | None = None
        self._about: Mapping[str, Any] | None = None
        self._held = ""
        self._guard = threading.RLock()

    def begin(self, under: TextIO, log: int, about: Mapping[str, Any] | None) -> None:
        """Write lines to the descriptor `log` until `end`: as records with `about` on each, or as they are."""
        with self._guard:
            self._under, self._log, self._about = under, log, about

    def end(self) -> TextIO:
        """Write what is left of a line; from here on what is written goes to the stream before, which is returned."""
        with self._guard:
            if self._held.strip("\r"):
                self._line(self._held)
            self._held, self._log = "", None
            assert self._under is not None, "begin comes first"
            return self._under

    def write(self, text: str) -> int:
        """Take text in; every whole line goes to the log. Of a line that was written over the last state counts."""
        with self._guard:
            if self._log is None:
                return self._under.write(text) if self._under is not None else len(text)
            *lines, held = (self._held + text).split("\n")
            for line in lines:
                self._line(line)
            held = held[held.rstrip("\r").rfind("\r") + 1 :]
            if len(held) > LONGEST_LINE:
                self._line(held)
                held = ""
            self._held = held
            return len(text)

    def flush(self) -> None:
        """Whole lines are in the file already; what was written to `buffer` goes to it now."""
        if self._under is None:
            return
        with contextlib.suppress(OSError) if self._log is not None else contextlib.nullcontext():
            self._under.flush()

    def reconfigure(self, **settings: Any) -> None:
        """Taken as `sys.stdout` takes it, without effect: lines are written at once, as UTF-8."""

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """Of the stream before: its output lands in the log as it is."""
        if self._under is None:
            raise io.UnsupportedOperation("fileno")
        return self._under.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the file."""
        return "utf-8"

    @property
    def buffer(self) -> Any:
        """Of the stream before."""
        return None if self._under is None else self._under.buffer

    def _line(self, text: str) -> None:
        assert self._log is not None, "only while a log is open"
        shown = masked(text.rstrip("\r").rpartition("\r")[2])
        if self._about is None:
            _write(self._log, shown)
            return
        for at in range(0, max(1, len(shown)), LONGEST_LINE):
            write_record(self._log, {**self._about, "stream": self._name, "text": shown[at : at + LONGEST_LINE]})


STREAMS = {"stdout": NamedStream("stdout"), "stderr": NamedStream("stderr")}


@contextlib.contextmanager
def printing(log: int, about: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Have everything that Python prints go to a log, without secrets.

    Args:
        log: the file's descriptor, opened to append.
        about: names on every line, which makes it a record.
    """
    for name, stream in STREAMS.items():
        stream.begin(getattr(sys, name), log, about)
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in STREAMS.items():
            setattr(sys, name, stream.end())


def write_record(log: int, record: Mapping[str, Any]) -> None:
    """One line, in one write. A disk that is full loses the line, not the trial."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    _write(log, json.dumps({"time": stamp, **record}, ensure_ascii=False))


def _write(log: int, line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(log, line.encode("utf-8", "backslashreplace") + b"\n")


def records(lines: Iterable[str], about: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """A log's lines as records; a line that is none gets the names of those before it, and `stream: raw`.

    Args:
        lines: of the file.
        about: names for lines before the first record.
    """
    names: dict[str, Any] = dict(about or {})
    for line in lines:
        record = _record(line)
        if record is None:
            yield {**names, "stream": "raw", "text": line.rstrip("\n")}
            continue
        names = {key: value for key, value in record.items() if key in ("sweep", "trial", "seed", "attempt")}
        yield record


def shown(record: Mapping[str, Any]) -> str:
    """A record for people: the text, or the line that an attempt begins with."""
    if record.get("event") != BEGAN:
        return str(record.get("text", ""))
    return "--- {time} seed {seed} attempt {attempt} from {from} pid {pid} on {host}".format(**record)


def _record(line: str) -> dict[str, Any] | None:
    """What `write_record` wrote; None for any other line, also one that a trial printed as JSON past Python."""
    if not line.startswith('{"time":'):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    wanted = {"event", "from", "pid", "host", "seed", "attempt"} if "event" in record else {"text", "trial"}
    return record if wanted <= record.keys() else None
