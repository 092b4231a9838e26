"""Soups on real Ray: a driver killed with -9 all along one resumes to the same soup, and two workers merge one together."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import killing
import pytest

from pipelines.soups import merge
from sweeps import merging
from sweeps.backend import RayBackend
from sweeps.load import load_file
from sweeps.paths import SweepPaths

pytestmark = pytest.mark.slow

FILE = """\
name: mixed
storage: ./runs
pipeline: {type: custom, import_path: "toy_weights:Weights", total: 1, metrics: {loss: minimize}, kwargs: {x: 0}}
parameters: {kwargs.x: [0, 1, 2, 4]}
method: grid
metric: loss
resources: {cpus: 1}
max_concurrent_trials: 1
soup: {method: greedy, top: 4, barrier: false}
"""

LATER = ("test_opened", "final_scored", "verdict")

SECONDS = 600
"""For a driver that makes no step: a busy machine is no failure."""


def write(folder: Path) -> Path:
    shutil.copy(Path(__file__).with_name("toy_weights.py"), folder)
    file = folder / "mixed.yaml"
    file.write_text(FILE)
    return file


def story(paths: SweepPaths) -> list[tuple[str, str]]:
    """What was asked, scored and decided, without times."""
    events = killing.read(paths)
    return [(event.kind, json.dumps(event.body)) for event in events if event.kind.startswith("soup_")]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep's file, its driver never interrupted."""
    file = write(tmp_path_factory.mktemp("plain"))
    assert killing.run_to_the_end(file, SECONDS) == 0, file.with_suffix(".out").read_text()
    return file


def kill_after(file: Path, count: int, delay: float) -> None:
    """Start or resume the sweep, and kill the driver once its soup has that many events."""
    paths, driver = load_file(file).paths, killing.start(file)
    until = time.monotonic() + SECONDS
    try:
        while len(story(paths)) < count and driver.poll() is None:
            assert time.monotonic() < until, f"event {count} of the soup did not come; there are {len(story(paths))}"
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        driver.kill()
        driver.wait()


def test_a_soup_that_is_killed_along_its_way_is_the_same_soup(plain: Path, tmp_path: Path) -> None:
    """Three kills at seeded moments: among the singles, among the mixtures, and while the weights are written."""
    calm = load_file(plain).paths
    total = len(story(calm))
    draw = random.Random(7)
    early, late = draw.randint(2, total // 2), draw.randint(total // 2 + 1, total - 2)
    file, inside = write(tmp_path), []
    paths = load_file(file).paths
    for count, delay in ((early, 0.05), (late, 0.05), (total - 1, 0.1)):
        kill_after(file, count, draw.random() * delay)
        inside.append(len(story(paths)))
    assert early <= inside[0] < total - 1, "the first kill fell into the soup"
    assert inside == sorted(inside)
    assert killing.run_to_the_end(file, SECONDS) == 0, file.with_suffix(".out").read_text()
    assert story(paths) == story(calm)
    (soup,) = [path.name for path in (calm.root / "soups").iterdir()]
    assert files(paths.soup(soup)) == files(calm.soup(soup))
    assert [path.name for path in (paths.root / "soups").iterdir()] == [soup], "nothing is left aside"
    record = json.loads((paths.soup(soup) / "soup.json").read_text())
    assert {entry["decision"] for entry in record["ingredients"]} == {"start", "accept", "reject"}


def ask(root: Path) -> subprocess.Popen[bytes]:
    """`stockpot soup` of another kind than the file's, on a finished sweep."""
    words = ["soup", str(root), "--method", "pruned", "--set", "barrier=false"]
    with (root.parent / "soup.out").open("ab") as out:
        return subprocess.Popen([killing.STOCKPOT, *words], stdout=out, stderr=out, cwd=root.parent)


def test_the_command_is_killed_along_its_way_and_asked_again(plain: Path, tmp_path: Path) -> None:
    """Killed while it scores, and between the soup and its verdicts; each answer is paid once, test is opened once more."""
    roots = [tmp_path / name / "mixed" for name in ("calm", "killed")]
    for root in roots:
        shutil.copytree(load_file(plain).paths.root, root)
    calm, killed = (SweepPaths(root) for root in roots)
    before = len(story(calm))
    assert ask(calm.root).wait(SECONDS) == 0, (calm.root.parent / "soup.out").read_text()
    made = len(story(calm)) - before
    assert made > 6
    for count in (before + made // 2, before + made):
        command, until = ask(killed.root), time.monotonic() + SECONDS
        while len(story(killed)) < count and command.poll() is None:
            assert time.monotonic() < until, f"event {count} of the soup did not come"
            time.sleep(0.005)
        command.kill()
        command.wait()
    assert ask(killed.root).wait(SECONDS) == 0, (killed.root.parent / "soup.out").read_text()
    assert story(killed) == story(calm)
    assert files(killed.soup("pruned-1")) == files(calm.soup("pruned-1"))
    told = [[(e.kind, e.body) for e in killing.read(paths) if e.kind in LATER] for paths in (calm, killed)]
    assert told[0] == told[1]


def test_two_workers_merge_one_soup(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a merge in one process; both workers wrote some of them."""
    monkeypatch.setattr(merging, "PART_BYTES", 1 << 20)
    loaded = load_file(plain, ["max_concurrent_trials=2"])
    folders = sorted(loaded.paths.root.glob("trials/*/seed-0/attempt-0/checkpoint-1"))
    payload: dict[str, Any] = {"ingredients": [[str(folder), 1 / len(folders)] for folder in folders], "cache": None}
    whole = merge({**payload, "out": str(tmp_path / "whole")})
    said: list[str] = []
    backend = RayBackend(loaded, loaded.paths)
    try:
        made = merging.make_weights(loaded, backend, {**payload, "out": str(tmp_path / "parted")}, said.append)
    finally:
        backend.close()
    assert said == ["the soup's weights are merged by 2 workers"]
    assert made == whole
    assert files(tmp_path / "parted") == files(tmp_path / "whole")
    assert loaded.paths.log("calls-1").is_file(), "the second worker has its log"
