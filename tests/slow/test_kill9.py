"""kill -9 of the driver, 15 times over three sweeps: nothing reported is lost or doubled, and every decision is the same."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import killing
import pytest

from sweeps.load import load_file
from sweeps.paths import SweepPaths

pytestmark = pytest.mark.slow

FILE = """\
name: {name}
storage: ./runs
pipeline:
  type: custom
  import_path: toy_pipeline:Toy
  total: 9
  metrics: {{loss: minimize}}
  kwargs: {{x: 0.5, step_seconds: {step}}}
parameters:
  kwargs.x: {{min: 0.0, max: 1.0}}
method: {{type: tpe, seed: 5, n_startup_trials: 3}}
metric: loss
budget: {{trials: 12}}
max_concurrent_trials: {most}
resources: {{cpus: 1}}
early_terminate: {{type: asha, min: 1, eta: 3, finalists: 2}}
"""


def write(folder: Path, name: str, most: int = 1, step: float = 0.03) -> Path:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), folder)
    file = folder / f"{name}.yaml"
    file.write_text(FILE.format(name=name, most=most, step=step))
    return file


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """The same sweep, never interrupted."""
    file = write(tmp_path_factory.mktemp("plain"), "plain")
    assert killing.run_to_the_end(file) == 0, file.with_suffix(".out").read_text()
    return load_file(file).paths


@pytest.fixture(scope="module", autouse=True)
def started() -> Iterator[list[int]]:
    """Processes that killed drivers had started; in the end none of them is left."""
    pids: list[int] = []
    yield pids
    assert not killing.await_gone(pids), "processes of killed drivers are still there"


def test_a_killed_sweep_tells_the_same_story(plain: SweepPaths, started: list[int], tmp_path: Path) -> None:
    """Other moments are those of `tests/unit/test_engine_resume.py`, on the virtual clock."""
    file, kills = write(tmp_path, "killed"), 8
    done = killing.kill_along(file, *killing.moments(seed=11, kills=kills, longest=8))
    paths = load_file(file).paths
    assert len(done) >= kills - 1, "the sweep ended before its kills; make the gaps shorter"
    assert killing.story(paths) == killing.story(plain)
    check_nothing_lost(paths, done, started)


def test_kills_between_the_last_lease_and_the_last_event(plain: SweepPaths, started: list[int], tmp_path: Path) -> None:
    file = write(tmp_path, "late")
    frozen = next(event.seq for event in killing.read(plain) if event.kind == "final_frozen")
    done = killing.kill_along(file, [frozen - 3, 1, 1], [0.0] * 3)
    paths = load_file(file).paths
    assert killing.story(paths) == killing.story(plain)
    assert len({kill.fell for kill in done} - {"reported", "decided"}) > 1
    check_nothing_lost(paths, done, started)
    for kind in ("final_frozen", "test_opened", "verdict"):
        assert kinds(paths).count(kind) == kinds(plain).count(kind)


def kinds(paths: SweepPaths) -> list[str]:
    return [event.kind for event in killing.read(paths)]


def test_several_at_once_lose_nothing_either(started: list[int], tmp_path: Path) -> None:
    file = write(tmp_path, "two", most=2)
    done = killing.kill_along(file, *killing.moments(13, 4, 12))
    paths = load_file(file).paths
    check_nothing_lost(paths, done, started)
    ends = Counter(event.body["run"] for event in killing.read(paths) if event.kind == "run_ended")
    assert len(ends) == 12
    assert set(ends.values()) == {1}


def check_nothing_lost(paths: SweepPaths, done: list[killing.Kill], started: list[int]) -> None:
    """What a kill left is the beginning of what there is at the end; each result once."""
    events = killing.read(paths)
    for kill in done:
        started.extend(kill.pids)
        assert tuple(events[: len(kill.events)]) == kill.events
    twice = Counter((event.body["run"], event.body["resource"]) for event in events if event.kind == "reported")
    assert set(twice.values()) == {1}
    assert events[-1].kind == "driver_ended"
    assert kinds(paths).count("sweep_finished") == 1
