"""A run that lost its worker goes on on another node where one has room, and on the same one where none has.

What a full object store does to a report is tried on the same nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import chaos_trial
from chaos_cluster import Driver, Town, events_of

pytestmark = pytest.mark.slow

PIPELINE = """\
import json, os
from pathlib import Path
import ray
from chaos_trial import Curve

class Placed(Curve):
    def run(self, task, report):
        place = {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}
        aside = Path(os.environ["PLACES"]) / f"{self.x}-{task.attempt}.tmp"
        aside.write_text(json.dumps(place))
        aside.rename(aside.with_suffix(".json"))
        super().run(task, report)
"""
FILE = """\
name: {name}
storage: ./runs
pipeline: {{type: custom, import_path: "placed:Placed", total: 4, metrics: {{loss: minimize}}, kwargs: {{x: 0.5}}}}
parameters: {{kwargs.x: {values}}}
method: grid
metric: loss
report_every: 1
resources: {{cpus: 1, gpus: 0}}
max_concurrent_trials: {most}
stall_after: {stall}
env: {{CHAOS_STEP: "0.1", CHAOS_HOLD: "{hold}", PLACES: "{places}", CHAOS_ITEMS: "{items}"}}
"""
SECONDS = 200
HELD_AT = 2
DISK_BYTES = 16 * 2**20
MANY = 12000
"""Items of a report that is too large to go past Ray's object store."""


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Two nodes with room for two trials each."""
    folder = tmp_path_factory.mktemp("town")
    shutil.copy(chaos_trial.__file__, folder)
    (folder / "placed.py").write_text(PIPELINE)
    made = Town(folder, 2, cpus=2, disk=DISK_BYTES if os.geteuid() == 0 else None)
    try:
        made.up()
        yield made
    finally:
        made.down()


class Held:
    """A sweep whose trials stop after their second step until told to go on."""

    def __init__(self, town: Town, name: str, values: list[float], most: int, stall: int = 600, items: int = 8) -> None:
        self.places = town.folder / f"{name}-places"
        self.places.mkdir()
        self.hold = town.folder / f"{name}-hold.json"
        self.hold.write_text(json.dumps({str(x): HELD_AT for x in values}))
        file = town.folder / f"{name}.yaml"
        about: dict[str, Any] = {"name": name, "values": values, "most": most, "stall": stall, "items": items}
        file.write_text(FILE.format(**about, hold=self.hold, places=self.places))
        self.driver = Driver(town, file, town.folder / "runs" / name)
        self.driver.start()

    def place(self, x: float, attempt: int) -> dict[str, Any]:
        """Node and process of an attempt, once it has begun."""
        told = self.places / f"{x}-{attempt}.json"
        until = time.monotonic() + SECONDS
        while not told.exists():
            assert self.driver.poll() is None, self.said
            assert time.monotonic() < until, f"attempt {attempt} of {x} did not begin: {self.said}"
            time.sleep(0.05)
        found: dict[str, Any] = json.loads(told.read_text())
        return found

    def kill(self, x: float, attempt: int) -> None:
        os.kill(self.place(x, attempt)["pid"], signal.SIGKILL)

    def finish(self) -> list[tuple[str, int]]:
        """Let all go on to the end; the kind and attempt of each failure."""
        self.hold.unlink()
        assert self.driver.process is not None
        assert self.driver.process.wait(SECONDS) == 0, self.said
        failed = [event.body for event in events_of(self.driver.root) if event.kind == "failed"]
        return [(body["kind"], body["attempt"]) for body in failed]

    @property
    def said(self) -> str:
        return self.driver.file.with_suffix(".out").read_text()[-2000:]


def test_after_a_stall_and_after_a_kill_it_goes_on_on_the_other_node(town: Town) -> None:
    held = Held(town, "moves", [0.2], most=1, stall=6)
    try:
        held.place(0.2, 1)  # the first attempt stalls, for it is held
        held.kill(0.2, 1)
        nodes = [held.place(0.2, attempt)["node"] for attempt in range(3)]
        assert held.finish() == [("stall", 0), ("node", 1)]
    finally:
        held.driver.kill()
    assert nodes[0] != nodes[1]
    assert nodes[1] != nodes[2]


def test_without_room_elsewhere_it_goes_on_on_its_own_node_and_else_takes_a_free_worker(town: Town) -> None:
    """All nodes are busy when the worker is lost; the second time another trial ends soon, and its place is for the one that waits."""
    values = [0.2, 0.7, 0.6, 0.4, 0.3]
    held = Held(town, "stays", values, most=4)
    try:
        places = {x: held.place(x, 0) for x in values[:4]}
        ends = next(x for x, place in places.items() if place["node"] != places[0.2]["node"])
        held.kill(0.2, 0)
        same = held.place(0.2, 1)
        held.kill(0.2, 1)
        held.hold.write_text(json.dumps({str(x): HELD_AT for x in values if x != ends}))
        again, new = held.place(0.2, 2), held.place(0.3, 0)
        assert held.finish() == [("node", 0), ("node", 1)]
    finally:
        held.driver.kill()
    assert len({place["node"] for place in places.values()}) == 2
    assert same["node"] == places[0.2]["node"]
    assert again["pid"] == places[ends]["pid"], "a warm worker was there"
    assert new["node"] == places[0.2]["node"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk that can be filled is a mount, which takes root")
def test_a_report_for_which_the_store_and_its_disk_are_full_is_made_again_elsewhere(town: Town, tmp_path: Path) -> None:
    held, out = Held(town, "full", [0.2, 0.7], most=1, items=MANY), tmp_path / "filler.json"
    filler = None
    try:
        first = held.place(0.2, 0)
        filler = town.fill(first["node"], 15.0, refuse=True, out=out)
        while not out.exists() or not out.read_text():
            assert filler.poll() is None
            time.sleep(0.05)
        allowed = {"0.2": HELD_AT + 1, "0.7": HELD_AT}
        held.hold.write_text(json.dumps(allowed))
        again = held.place(0.2, 1)
        filler.send_signal(signal.SIGINT)
        failed = held.finish()
        assert filler.wait(SECONDS) == 0, out.read_text()
    finally:
        held.driver.kill()
        if filler is not None:
            filler.kill()
            filler.wait()
    assert json.loads(out.read_text())["refused"] == "OutOfDiskError"
    assert failed[0] == ("node", 0)
    assert again["node"] != first["node"]
    events = events_of(held.driver.root)
    messages = [event.body["message"] for event in events if event.kind == "failed"]
    assert all(message.startswith("OutOfDiskError") for message in messages), messages
    reported = [(one.body["run"], one.body["resource"]) for one in events if one.kind == "reported"]
    assert len(set(reported)) == len(reported) == 8
    lease = next(one.body for one in events if one.kind == "lease_started" and one.body["why"] == "again")
    assert lease["from_resource"] == HELD_AT + 1, "the checkpoint of the report that was lost is whole"
    assert lease["replay"], "and its report is made again from it"


def test_a_driver_that_connects_while_the_head_dies_ends_and_says_so(town: Town) -> None:
    """Ray itself would try to reach the head for a quarter of an hour, or not at all where it had not met it yet.

    Last of all, for the cluster is gone then.
    """
    held = Held(town, "joins", [0.2], most=1)
    process = held.driver.process
    assert process is not None
    try:
        while "/stderr" not in os.readlink(f"/proc/{process.pid}/fd/2"):  # held back while Ray joins
            assert process.poll() is None, held.said
            time.sleep(0.01)
        os.kill(town.head()[0].pid, signal.SIGKILL)
        status = process.wait(SECONDS)
    finally:
        held.driver.kill()
    said = {
        130: (f"the head of the Ray cluster ({town.address}) has not answered for", "raise one again, then resume"),
        2: (f"can't reach the Ray cluster at {town.address}", "is it running"),
    }
    assert status in said, held.said
    assert all(part in held.said for part in said[status])
    assert "Traceback" not in held.said
    assert not events_of(held.driver.root), "nothing was begun"
