"""The process beside a driver that tells a tracker: one that fails, hangs or crashes is waited for by nobody."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sweeps import tracking
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.track_rules import PACKAGES
from sweeps.track_spec import TensorBoardConfig
from sweeps.trackers.sender import LONGEST_PAUSE, POLL_SECONDS, own_output, pause_after
from sweeps.tracking import Tracking


@pytest.fixture
def config(tmp_path: Path) -> TensorBoardConfig:
    return TensorBoardConfig(log_dir=str(tmp_path / "tb"))


def sweep_in_progress(tmp_path: Path) -> tuple[SweepPaths, Ledger]:
    paths = SweepPaths(tmp_path / "s")
    return paths, Ledger.create(paths.root, durable=False)


SENDERS = {
    "fine": "import sys",
    "complains": "print('it is down', flush=True); print('again', flush=True)",
    "crashes": "raise SystemExit(3)",
    "hangs": "import time; print('slow', flush=True); time.sleep(600)",
}


@pytest.mark.parametrize("how", SENDERS)
def test_nobody_waits_for_a_tracker(
    tmp_path: Path, how: str, config: TensorBoardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake_sender.py").write_text(SENDERS[how] + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(tracking, "GOODBYE_SECONDS", 30.0 if how != "hangs" else 0.2)
    paths, ledger = sweep_in_progress(tmp_path)
    said: list[str] = []
    tracked = Tracking(paths, [config], said.append, sender="fake_sender")
    tracked.start()
    assert said.pop(0) == f"tracked by tensorboard: event files in {config.log_dir}"
    children = [child.process for child in tracked._children]
    until = time.monotonic() + 60
    while how != "fine" and not said and time.monotonic() < until:
        tracked.poll()
        time.sleep(0.01)
    ledger.close()
    tracked.finish()
    assert all(process.returncode is not None for process in children)
    warned = [text for text in said if "could not be told" in text]
    assert len(warned) == (how != "fine")
    assert ("`stockpot track" in said[-1] if said else False) == (how in ("crashes", "hangs"))


def test_a_missing_package_is_told_and_the_sweep_goes_on(
    tmp_path: Path, config: TensorBoardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, "tensorboard", "no_such_package")
    said: list[str] = []
    tracked = Tracking(SweepPaths(tmp_path), [config], said.append)
    tracked.start()
    tracked.poll()
    tracked.finish()
    assert len(said) == 1
    assert "pip install 'stockpot[tensorboard]'" in said[0]


def test_pauses_between_tries_grow_to_the_longest() -> None:
    pauses = [pause_after(failures) for failures in (0, 1, 2, 3, 2000)]
    assert pauses == [POLL_SECONDS, 2 * POLL_SECONDS, 4 * POLL_SECONDS, 8 * POLL_SECONDS, LONGEST_PAUSE]


def test_what_others_print_goes_to_the_log() -> None:
    (read, output), (read_log, log) = os.pipe(), os.pipe()
    with own_output(output, log) as told:
        os.write(output, b"View run at http://there\n")
        print("it is down", file=told, flush=True)
    os.close(output)
    os.close(log)
    with os.fdopen(read) as ours, os.fdopen(read_log) as theirs:
        assert (ours.read(), theirs.read()) == ("it is down\n", "View run at http://there\n")
