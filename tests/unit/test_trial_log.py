"""A trial's log: what Python prints, line by line, also where lines are written over."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.lease_thread import logged
from sweeps.secret_values import MASK, know
from sweeps.trial_log import NamedStream


class Log:
    """A stream that writes to a log, over one that stood there before."""

    def __init__(self, file: Path) -> None:
        self.raw = io.BytesIO()
        self.stream = NamedStream("stdout")
        self._file = file
        self.descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.stream.begin(io.TextIOWrapper(io.BufferedWriter(self.raw)), self.descriptor, {"trial": "t"})

    @property
    def texts(self) -> list[str]:
        return [json.loads(line)["text"] for line in self._file.read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "t.log")
    yield made
    os.close(made.descriptor)


@pytest.mark.parametrize(
    ("written", "texts"),
    [
        (["a\nb", "c\n"], ["a", "bc"]),
        (["\r10%", "\r20%", "\n"], ["20%"]),
        (["10%\r", "20%\r", "\n"], ["20%"]),
        (["10%\r", "20%", " and on\n"], ["20% and on"]),
        (["from windows\r", "\nnext\r\n"], ["from windows", "next"]),
        (["10%\r", "left"], ["left"]),
        (["left\r"], ["left"]),
        (["whole\n", "\r"], ["whole"]),
    ],
)
def test_of_a_line_written_over_the_last_state_counts(log: Log, written: list[str], texts: list[str]) -> None:
    for text in written:
        log.stream.write(text)
    log.stream.end()
    assert log.texts == texts


def test_no_secret_reaches_the_log(log: Log, tmp_path: Path) -> None:
    know(["planted-4411"])
    try:
        for text in ("key pla", "nted-4411\n", "logged in as hf_" + "a" * 30 + "\n"):
            log.stream.write(text)
        log.stream.end()
        with logged(str(tmp_path / "calls.log"), None):
            print("a call has planted-4411")
    finally:
        know([])
    assert log.texts == [f"key {MASK}", f"logged in as {MASK}"]
    assert (tmp_path / "calls.log").read_text() == f"a call has {MASK}\n"


def test_what_went_to_the_buffer_is_there_after_a_flush(log: Log) -> None:
    log.stream.buffer.write(b"bytes of a subprocess\n")
    log.stream.flush()
    assert log.raw.getvalue() == b"bytes of a subprocess\n"


def test_a_full_disk_below_fails_no_flush(log: Log) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    log.stream._under.flush = full  # type: ignore[union-attr,method-assign]
    log.stream.flush()
    log.stream.end()
    with pytest.raises(OSError, match="No space left"):
        log.stream.flush()


def test_it_is_set_up_like_standard_output(log: Log) -> None:
    log.stream.reconfigure(line_buffering=True, encoding="utf-8", errors="replace")
    handler = logging.StreamHandler(log.stream)
    handler.emit(logging.makeLogRecord({"msg": "ä"}))
    assert log.texts == ["ä"]
