"""The real command in a terminal window: what stands on it, resized, interrupted, closed, and watched from another one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulator import Console

from sweeps.commands.watch import Follower
from sweeps.lock import DriverLock
from sweeps.paths import SweepPaths

pytestmark = pytest.mark.slow

STOCKPOT = str(Path(sys.executable).with_name("stockpot"))
SECONDS = 400
FILE = """\
name: toy
pipeline:
  type: custom
  import_path: toy_pipeline:Toy
  total: 9
  metrics: {{loss: minimize}}
  kwargs: {{x: 0.1, step_seconds: {step}}}
parameters:
  kwargs.x: {{min: 0.0, max: 1.0}}
method: {{type: random, seed: 1}}
metric: loss
budget: {{trials: {trials}}}
early_terminate: {{type: asha, min: 1, eta: 3}}
resources: {{cpus: 1}}
max_concurrent_trials: 1
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), tmp_path)
    yield tmp_path
    holder = DriverLock.holder(tmp_path / "stockpot-runs" / "toy" / "driver.lock")
    if holder is not None:
        os.kill(int(holder["pid"]), signal.SIGKILL)


def submit(
    here: Path, step: float = 0.3, trials: int = 5, columns: int = 100, rows: int = 30, **environment: str | None
):
    (here / "toy.yaml").write_text(FILE.format(step=step, trials=trials))
    return Console([STOCKPOT, "submit", "toy.yaml"], here, columns, rows, **environment)


def stockpot(here: Path, *words: str) -> str:
    done = subprocess.run([STOCKPOT, *words], cwd=here, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_window_shows_the_sweep_is_resized_and_watched_from_another(here: Path) -> None:
    console = submit(here, step=0.4)
    text = console.await_(lambda text: re.search(r"[1-4]/5 trials", text) and "ETA" in text)
    assert re.search(r"^toy  running  \d+ s  ETA ", text, re.M)
    assert re.search(r"^▸ 000\d  running   [━╌·]{10}    \d/9", text, re.M)
    assert re.search(r"^slots ■ 1/1 busy, 1 CPU each", text, re.M)
    assert text.splitlines()[-1] == "Ctrl-C stops; stockpot resume toy goes on"
    assert text.splitlines()[0].startswith("sweep toy in ")
    watcher = Console([STOCKPOT, "status", "toy", "--watch", "--interval", "0.3"], here, 80, 24)
    watched = watcher.await_(lambda text: "Ctrl-C leaves; the sweep goes on" in text)
    assert watcher.screen.alternate
    assert watched.startswith("toy  running  ")
    for other, columns, rows in ((console, 70, 16), (watcher, 140, 40)):
        other.resize(columns, rows)
        other.read(1.0)
        lines = other.screen.text
        shown = lines[next(i for i, line in enumerate(lines) if line.startswith("toy  ")) :]
        assert max(map(len, shown)) < columns
        assert sum(line.startswith("best  ") for line in lines) == 1
        assert "value" in "\n".join(lines)
    assert console.end() == 0
    ended = "\n".join(console.screen.text)
    assert "running  " not in ended.split("folder: ")[0].splitlines()[0]
    assert "folder: " in ended
    assert watcher.end(30) == 0
    assert not watcher.screen.alternate
    assert "\n".join(watcher.screen.text).startswith("toy: finished\n")
    assert b"\x1b[?25h" in watcher.raw.split(b"\x1b[?1049l")[0][-20:]


def test_ctrl_c_in_the_window_gives_130_and_the_sweep_resumes(here: Path) -> None:
    console = submit(here)
    console.await_(lambda text: re.search(r"[1-4]/5 trials", text))
    console.type(b"\x03")
    console.await_(lambda text: "stopping: running trials end at their next report" in text)
    assert console.end() == 130
    text = "\n".join(console.screen.text)
    assert "Go on with: stockpot resume toy" in text
    assert "toy: stopped" in stockpot(here, "status", "toy")
    again = Console([STOCKPOT, "resume", "toy"], here, 100, 30)
    again.await_(lambda text: "5/5 trials" in text)
    assert again.end() == 0
    assert "toy: finished" in stockpot(here, "status", "toy")


def test_a_window_that_is_closed_does_not_end_the_sweep(here: Path) -> None:
    console = submit(here, step=0.4)
    console.await_(lambda text: re.search(r"[1-4]/5 trials", text))
    watcher = Console([STOCKPOT, "status", "toy", "--watch", "--interval", "0.3"], here, 80, 24)
    watcher.await_(lambda text: "Ctrl-C leaves" in text)
    paths = SweepPaths(here / "stockpot-runs" / "toy")
    seen = Follower(paths)
    reports = sum(len(run.reports) for run in seen.state.runs.values())
    console.close()
    watcher.close()
    assert watcher.process.wait(timeout=120) in (0, 130)
    until = time.monotonic() + SECONDS
    while DriverLock.holder(paths.lock) is not None:
        assert time.monotonic() < until
        time.sleep(0.3)
    assert console.process.wait(timeout=120) == 0
    seen.catch_up()
    assert seen.state.finished is not None
    assert seen.state.drivers == 1
    assert sum(len(run.reports) for run in seen.state.runs.values()) > reports
    seen.close()
    assert "toy: finished" in stockpot(here, "status", "toy")


def test_a_dumb_terminal_and_ci_get_plain_lines(here: Path) -> None:
    console = submit(here, step=0.0, trials=2, TERM="dumb")
    assert console.end() == 0
    assert b"\x1b" not in console.raw.replace(b"\x1b[0m", b"")  # Ray resets the colours of any terminal at its exit
    assert re.search(rb"\[.*\] 2/2 trials, 0 running, best tune/loss ", console.raw)
    watcher = Console([STOCKPOT, "status", "toy", "--watch"], here, 80, 24, CI="true")
    assert watcher.end(30) == 0
    assert b"\x1b" not in watcher.raw


def test_an_ascii_terminal_without_colours(here: Path) -> None:
    console = submit(here, step=0.3, trials=3, LANG="C", NO_COLOR="1")
    text = console.await_(lambda text: re.search(r"[12]/3 trials", text))
    assert text.isascii()
    assert re.search(r"^> 000\d  running   [#.-]{10}", text, re.M)
    console.type(b"\x03")
    assert console.end() == 130
    assert not re.search(rb"\x1b\[(\d+;)*3\dm", console.raw)
