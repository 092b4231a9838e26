"""What remote storage loses, or gets from somebody else, while sweeps live there: it gets back what it had, and nothing is lost here."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cloud import RUN, Cloud, bodies, drive, here, place, raising, report

import sweeps.riding
from pipelines.finetune.checkpoint import is_whole
from sweeps.driving import unsent
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.seals import text_seal
from sweeps.segments import Segments


def until(done: Callable[[], bool]) -> None:
    for _ in range(4000):
        if done():
            return
        sweeps.riding.time.sleep(0.005)
    raise AssertionError("it never came to be")


def test_what_the_storage_has_lost_goes_again(cloud: Cloud) -> None:
    drive(1, 3, 9)
    before, last = cloud.segments, cloud.segments[-1]
    cloud.forget(*before[:-1], "snapshot.json", *(name for name in cloud.names if "checkpoint-1/" in name))
    assert cloud.segments == [last]
    assert drive() is None
    assert cloud.segments[: len(before)] == before
    assert cloud.reported == [1, 3, 9]
    assert f"trials/{RUN}/attempt-0/checkpoint-1/complete.json" in cloud.names


def test_a_bucket_emptied_while_a_sweep_runs_has_everything_at_its_end(cloud: Cloud) -> None:
    met: list[int] = []

    def empty() -> None:
        until(lambda: cloud.reported == [1, 3])
        met.append(len(cloud.names))
        cloud.forget(*(name for name in cloud.names if not name.startswith("lease/")))

    assert drive(1, 3, then=empty) is None
    assert met
    assert cloud.reported == [1, 3]
    assert f"trials/{RUN}/attempt-0/checkpoint-1/complete.json" in cloud.names


def test_an_emptied_bucket_gets_what_came_before_this_machine_s_segments(
    cloud: Cloud, elsewhere: Callable[[str], SweepPaths]
) -> None:
    drive(1, 3)
    two = elsewhere("two")
    drive(9)
    assert min(Segments(two.segments).numbers()) > 1
    cloud.forget(*cloud.names)
    assert drive() is None
    three = elsewhere("three")
    assert drive() is None
    assert bodies(three.root) == bodies(two.root)
    assert all(is_whole(place(three, resource)) for resource in (1, 3, 9))


def foreign(own: bytes) -> bytes:
    """A sound segment of the same events, which says something else."""
    head, *lines = [json.loads(line) for line in own.splitlines()[:-1]]
    lines[-1]["body"] = {**lines[-1]["body"], "worker_seconds": 77.0}
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (head, *lines))
    return text.encode() + json.dumps({"sha256": text_seal(text)}, separators=(",", ":")).encode() + b"\n"


def test_a_segment_of_another_driver_sets_aside_what_lies_here(cloud: Cloud) -> None:
    drive(1)
    name = f"ledger/{len(cloud.segments) + 1:06d}.jsonl"
    met: list[str] = []

    def late(verb: str, path: str) -> None:
        if not met and path.endswith("checkpoint-3/state.json"):
            met.append(path)
            until((here().root / name).exists)
            cloud.write(name, foreign((here().root / name).read_bytes()))

    cloud.breaks(late)
    left = drive(3)
    cloud.breaks(None)
    assert met
    assert left is not None
    assert left.kind == "taken"
    own = bodies(here().root)
    said: list[str] = []
    assert drive(say=said.append) is None
    assert [body["worker_seconds"] for _, kind, body in bodies(here().root) if kind == "reported"] == [0.1, 77.0]
    [aside] = here().root.parent.glob("toy.overtaken-*")
    assert bodies(aside) == own
    assert any(str(aside) in text for text in said)


def test_a_late_segment_of_another_driver_is_not_taken_for_what_waits_here(cloud: Cloud) -> None:
    """A driver was killed with reports in no segment yet; then another one's next segment comes to the bucket."""
    drive(1)
    number = len(cloud.segments) + 1
    report(here(), ledger := Ledger.open(here().root), 3)
    ledger.drop()
    own = Segments(here().segments).path(number)
    cloud.write(f"ledger/{own.name}", foreign(own.read_bytes()))
    own.unlink()
    kept = bodies(here().root)
    said: list[str] = []
    assert drive(say=said.append) is None
    [aside] = here().root.parent.glob("toy.overtaken-*")
    assert bodies(aside) == kept
    assert [body["worker_seconds"] for _, kind, body in bodies(here().root) if kind == "reported"] == [0.1, 77.0]
    assert any(str(aside) in text for text in said)


def test_a_bucket_made_anew_gets_the_lease_of_who_is_at_work(cloud: Cloud) -> None:
    met: list[str] = []

    def empty() -> None:
        until(lambda: cloud.reported == [1])
        met.extend(cloud.names)
        cloud.forget(*met)
        until(lambda: "lease/000001.json" in cloud.names)

    assert drive(1, then=empty) is None
    assert "lease/000001.json" in met
    assert cloud.reported == [1]


def test_an_end_that_is_broken_off_notes_what_waits(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.breaks(raising(TimeoutError("no answer"), "write", about="checkpoint-1/"))
    join = sweeps.riding.threading.Thread.join

    def pressed(thread: Any, timeout: float | None = None) -> None:
        if thread.name == "stockpot-rider":
            raise KeyboardInterrupt
        join(thread, timeout)

    with pytest.raises(KeyboardInterrupt):
        drive(1, then=lambda: monkeypatch.setattr(sweeps.riding.threading.Thread, "join", pressed))
    kept = unsent(here())
    assert kept is not None
    assert kept["segments"] > 0
