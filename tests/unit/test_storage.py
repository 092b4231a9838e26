"""Remote storage: what rides there and in which order, who may write, what comes back, and what its faults cost (nothing reported)."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cloud import (
    RUN,
    URL,
    Cloud,
    begin,
    bodies,
    drive,
    here,
    killed,
    place,
    raising,
    report,
    silent,
    write_checkpoint,
)
from soup_machine import small_disk

import sweeps.riding
import sweeps.storage_lease
from pipelines.finetune.checkpoint import is_whole
from sweeps.commands.places import UsageError, find_sweep, sweeps_under
from sweeps.driving import ask_to_stop, driving, holder_of, refuse_storage, unsent
from sweeps.events import Event
from sweeps.ledger import Ledger, LedgerError
from sweeps.load import load_text
from sweeps.paths import SweepPaths
from sweeps.problems import SpecError
from sweeps.schemes import problem
from sweeps.storage import StorageError, told

ERRORS: dict[str, Exception] = {
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "denied": PermissionError("Access Denied"),
    "gone": FileNotFoundError("The specified bucket does not exist"),
    "unreachable": TimeoutError("no answer"),
}


def test_another_machine_goes_on_from_the_storage_alone(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    assert drive(1, 3) is None
    first = bodies(here().root)
    one = here()
    two = elsewhere("two")
    assert not two.root.exists()
    assert drive(9) is None
    assert bodies(two.root)[: len(first)] == first
    assert [body["resource"] for _, kind, body in bodies(two.root) if kind == "reported"] == [1, 3, 9]
    assert is_whole(place(two, 3))
    said: list[str] = []
    elsewhere("one")
    assert drive(say=said.append) is None
    assert bodies(one.root) == bodies(two.root)
    assert any("another machine has gone on" in text for text in said)
    [aside] = one.root.parent.glob("toy.overtaken-*")
    assert bodies(aside) == first
    segments = [name for name in cloud.names if name.startswith("ledger/")]
    assert segments == [f"ledger/{number:06d}.jsonl" for number in range(1, len(segments) + 1)]


def test_a_checkpoint_goes_before_its_report_and_its_marker_last(cloud: Cloud) -> None:
    drive(1)
    written = [path for verb, path in cloud.calls if verb == "write"]
    folder = f"trials/{RUN}/attempt-0/checkpoint-1"
    order = [written.index(f"{folder}/{name}") for name in ("model.safetensors", "state.json", "complete.json")]
    assert max(order[:2]) < order[2]
    reported = next(
        name for name in cloud.names if name.startswith("ledger/") and b'"event":"reported"' in cloud.read(name)
    )
    assert order[2] < written.index(reported)


def test_what_was_deleted_goes_after_its_event_and_the_marker_first(cloud: Cloud) -> None:
    paths = here()
    with driving(paths, silent):
        ledger = begin(paths)
        report(paths, ledger, 1)
        report(paths, ledger, 3)
        ledger.append([Event("checkpoint_deleted", {"run": RUN, "attempt": 0, "resource": 1, "bytes": 9})])
        ledger.close()
    assert not any("checkpoint-1/" in name for name in cloud.names)
    assert any("checkpoint-3/complete.json" in name for name in cloud.names)
    removed = [path for verb, path in cloud.calls if verb == "remove" and "checkpoint-1/" in path]
    assert len(removed) == 3
    assert removed[0].endswith("complete.json")


def test_a_second_driver_is_refused_until_the_first_is_dead(
    cloud: Cloud, elsewhere: Callable[[str], SweepPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(1)
    killed(cloud, 1)
    elsewhere("two")
    before = cloud.names
    with pytest.raises(
        StorageError, match=r"driven by pid \d+ on .*last sign of life.*stockpot stop s3://bucket/runs/toy"
    ) as held:
        drive(3)
    assert held.value.kind == "taken"
    assert cloud.names == before
    assert not here().root.exists()
    monkeypatch.setattr(sweeps.storage_lease, "DEAD_SECONDS", 0.0)
    assert drive(3) is None


def test_a_killed_driver_is_followed_at_once_on_its_own_machine(cloud: Cloud) -> None:
    drive(1)
    killed(cloud, 1)
    assert drive(3) is None
    assert "lease/000002.json" in cloud.names


def test_a_driver_that_was_taken_for_dead_stops_and_sends_nothing_more(cloud: Cloud) -> None:
    said: list[str] = []
    paths = here()
    with driving(paths, said.append) as driven:
        ledger = begin(paths)
        record = {"pid": 7, "host": "other", "started": "now", "nonce": "x"}
        cloud.write("lease/000002.json", json.dumps(record).encode())
        report(paths, ledger, 1)
        ledger.close()
    problem_left = driven.problem
    assert problem_left is not None
    assert problem_left.kind == "taken"
    assert "pid 7 on other" in str(problem_left)
    assert len(bodies(here().root)) == 5
    assert here().stop_request.exists()
    assert "lease/000001.ended" not in cloud.names
    assert any("not part of the sweep any more" in text for text in said)


def test_a_segment_is_never_written_over(cloud: Cloud) -> None:
    drive(1)
    number = len([name for name in cloud.names if name.startswith("ledger/")]) + 1
    name = f"ledger/{number:06d}.jsonl"
    cloud.breaks(
        lambda verb, path: cloud.write(name, b"another driver's") if path.endswith("checkpoint-3/state.json") else None
    )
    left = drive(3)
    assert left is not None
    assert left.kind == "taken"
    assert cloud.read(name) == b"another driver's"
    assert [body["resource"] for _, kind, body in bodies(here().root) if kind == "reported"] == [1, 3]


@pytest.mark.parametrize("kind", ERRORS)
def test_a_fault_while_a_sweep_runs_loses_nothing_and_is_mended_by_the_next_driver(
    cloud: Cloud, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    paths = here()
    with driving(paths, said.append) as driven:
        ledger = begin(paths)
        report(paths, ledger, 1)
        monkeypatch.setattr(sweeps.riding, "END_SECONDS", 0.05)
        cloud.breaks(raising(ERRORS[kind]))
        report(paths, ledger, 3)
        ledger.close()
    left = driven.problem
    assert left is not None
    assert left.kind == kind
    assert any(f"not everything could be sent ({kind}" in text for text in said)
    kept = unsent(here())
    assert kept is not None
    assert kept["kind"] == kind
    before = bodies(here().root)
    cloud.breaks(None)
    monkeypatch.setattr(sweeps.riding, "END_SECONDS", 60.0)
    assert drive() is None
    assert unsent(here()) is None
    assert bodies(here().root) == before
    assert any("checkpoint-3/complete.json" in name for name in cloud.names)
    assert sum(b'"event":"reported"' in cloud.read(name) for name in cloud.names if name.startswith("ledger/")) == 2


def test_a_report_waits_for_its_checkpoint(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps.riding, "END_SECONDS", 0.05)
    cloud.breaks(raising(TimeoutError("no answer"), "write", about="checkpoint-3/"))
    left = drive(1, 3)
    assert left is not None
    assert not any(b'"resource":3' in cloud.read(name) for name in cloud.names if name.startswith("ledger/"))
    assert any(b'"resource":1' in cloud.read(name) for name in cloud.names if name.startswith("ledger/"))


def test_a_storage_that_answers_again_gets_everything_and_that_is_said(cloud: Cloud) -> None:
    said: list[str] = []
    count = [0]

    def flaky(verb: str, path: str) -> None:
        if verb == "write" and "/ledger/" in path:
            count[0] += 1
            if count[0] % 3:
                raise TimeoutError("slow down")

    cloud.breaks(flaky)
    assert drive(1, 3, 9, say=said.append) is None
    assert sum(b'"event":"reported"' in cloud.read(name) for name in cloud.names if name.startswith("ledger/")) == 3
    assert any("no good answer" in text for text in said)
    assert (
        sum("no good answer" in text for text in said) <= sum("takes what is sent again" in text for text in said) + 1
    )


@pytest.mark.parametrize("kind", ERRORS)
def test_what_is_wrong_at_the_door_is_typed_and_writes_nothing(cloud: Cloud, kind: str) -> None:
    cloud.breaks(raising(ERRORS[kind]))
    for attempt in (lambda: refuse_storage(here()), lambda: drive(1)):
        with pytest.raises(StorageError) as caught:
            attempt()
        assert caught.value.kind == kind
        assert "s3://bucket/runs/toy" in str(caught.value)
    assert not here().root.exists()


def test_a_torn_checkpoint_is_passed_over_and_said(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    drive(1, 3)
    name = f"trials/{RUN}/attempt-0/checkpoint-3/model.safetensors"
    cloud.write(name, cloud.read(name)[:-1] + b"x")
    two = elsewhere("two")
    said: list[str] = []
    assert drive(say=said.append) is None
    assert not place(two, 3).exists()
    assert is_whole(place(two, 1))
    assert any("checkpoint-3/complete.json" in text and "is not what was sent" in text for text in said)


@pytest.mark.parametrize("folder", ["ledger/", "snapshot/"])
def test_a_damaged_ledger_is_refused(cloud: Cloud, elsewhere: Callable[[str], SweepPaths], folder: str) -> None:
    drive(1)
    name = next(known for known in cloud.names if known.startswith(folder))
    elsewhere("two")
    if folder == "ledger/":
        cloud.forget("snapshot.json")
    data = cloud.read(name)
    cloud.write(name, data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    with pytest.raises(StorageError) as caught:
        drive()
    assert caught.value.kind == "damaged"


def test_a_snapshot_stands_for_the_segments_before_it(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    drive(1, 3)
    first = bodies(here().root)
    segments = sorted(name for name in cloud.names if name.startswith("ledger/"))
    for name in segments[:-1]:
        cloud.forget(name)
    two = elsewhere("two")
    assert drive(9) is None
    assert bodies(two.root)[: len(first)] == first
    assert sorted(name for name in cloud.names if name.startswith("ledger/"))[-1] > segments[-1]


def test_a_reader_elsewhere_sees_a_sweep_by_its_url(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    drive(1)
    elsewhere("two")
    found = find_sweep(f"{URL}/toy", "./stockpot-runs")
    assert found.root != here().root
    assert not here().root.exists()
    assert found.place == f"{URL}/toy"
    assert holder_of(found) is None
    assert [body["resource"] for _, kind, body in bodies(found.root) if kind == "reported"] == [1]
    elsewhere("one")
    drive(3)
    elsewhere("two")
    assert len(bodies(find_sweep("toy", URL).root)) == 6
    assert [paths.name for paths in sweeps_under(URL)] == ["toy"]
    with pytest.raises(UsageError, match=r"no sweep 'tow'.*Did you mean 'toy'"):
        find_sweep("tow", URL)
    writes = [path for verb, path in cloud.calls if verb == "write"]
    find_sweep("toy", URL)
    assert [path for verb, path in cloud.calls if verb == "write"] == writes


def test_a_sweep_made_anew_under_its_name_is_another_one(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    drive(1, 3)
    elsewhere("two")
    find_sweep("toy", URL)
    for name in cloud.names:
        cloud.forget(name)
    elsewhere("three")
    drive(1)
    elsewhere("two")
    assert len(bodies(find_sweep("toy", URL).root)) == 5


def test_a_reader_that_can_t_reach_the_storage_reads_what_lies_here(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    drive(1)
    cloud.breaks(raising(TimeoutError("no answer")))
    assert find_sweep("toy", URL).root == here().root
    assert "(unreachable); this is what lies in" in capsys.readouterr().err


def test_a_stop_from_elsewhere_reaches_the_driver(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    def stop() -> None:
        own = here()
        while not any(name.startswith("ledger/") for name in cloud.names):
            sweeps.riding.time.sleep(0.005)
        elsewhere("two")
        copy = find_sweep("toy", URL)
        assert holder_of(copy) is not None
        ask_to_stop(copy, 3.5)
        elsewhere("one")
        for _ in range(2000):
            if own.stop_request.exists():
                return
            sweeps.riding.time.sleep(0.005)

    assert drive(1, then=stop) is None
    assert json.loads(here().stop_request.read_text())["grace"] == 3.5
    assert "stop.request" not in cloud.names


def test_a_name_in_use_is_refused(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    drive(1)
    elsewhere("two")
    with pytest.raises(
        LedgerError, match=r"in use in s3://bucket/runs: go on with `stockpot resume s3://bucket/runs/toy`"
    ):
        refuse_storage(here())


def test_a_soup_rides_with_its_event(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    paths = here()
    with driving(paths, silent):
        ledger = begin(paths)
        folder = paths.soup("greedy-1")
        (folder / ".work").mkdir(parents=True)
        (folder / ".work" / "part").write_text("scratch")
        (folder / "model.safetensors").write_text("soup")
        (folder / "soup.json").write_text("{}")
        body = {"soup": "greedy-1", "folder": "soups/greedy-1", "ingredients": [], "reason": ""}
        ledger.append([Event("phase", {"phase": "p", "kind": "soup_finished", "body": body})])
        ledger.close()
    assert [name for name in cloud.names if name.startswith("soups/")] == [
        "soups/greedy-1/model.safetensors",
        "soups/greedy-1/soup.json",
    ]
    two = elsewhere("two")
    drive()
    assert (two.soup("greedy-1") / "model.safetensors").read_text() == "soup"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3a://bucket/runs", "write s3://bucket/runs for s3a://"),
        ("ftp://host/runs", "'ftp://' is no storage; give a folder, or s3://bucket/prefix"),
        ("s3://key:secret@bucket/runs", "come from the environment"),
        ("s3://bucket/runs?endpoint=x", "come from the environment"),
        ("s3:///runs", "names no bucket"),
        ("s3://bucket/../x", "names no bucket, or an empty part"),
    ],
)
def test_a_url_that_means_nothing_is_a_mistake_in_the_file(tmp_path: Path, url: str, says: str) -> None:
    text = (
        'name: a\npipeline: {type: custom, import_path: "toy:Toy", total: 3, metrics: {loss: minimize}}\n'
        f'parameters: {{kwargs.x: [1, 2]}}\nmetric: loss\nstorage: "{url}"\n'
    )
    (tmp_path / "toy.py").write_text("class Toy: ...\n")
    with pytest.raises(SpecError) as caught:
        load_text(text.encode(), tmp_path)
    [found] = caught.value.problems
    assert (found.place, found.line) == ("storage", 5)
    assert says in found.message


def test_a_remote_storage_loads_with_its_working_folder(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("class Toy: ...\n")
    text = (
        'name: toy\npipeline: {type: custom, import_path: "toy:Toy", total: 3, metrics: {loss: minimize}}\n'
        "parameters: {kwargs.x: [1, 2]}\nmetric: loss\nstorage: s3://bucket/runs/\n"
    )
    loaded = load_text(text.encode(), tmp_path)
    assert loaded.spec.storage == URL
    assert loaded.paths == here()
    assert loaded.paths.place == f"{URL}/toy"
    assert loaded.paths.root.is_relative_to(tmp_path / "one" / "work")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert problem(URL) == "s3:// needs the package s3fs, which is not installed: pip install 'stockpot[s3]'"
    assert "stockpot[gcs]" in str(problem("gs://bucket"))
    assert "stockpot[azure]" in str(problem("az://container"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "full"),
        (OSError("An error occurred (QuotaExceeded)"), "full"),
        (OSError(errno.EROFS, "Read-only file system"), "denied"),
        (PermissionError("Forbidden"), "denied"),
        (OSError("SignatureDoesNotMatch"), "denied"),
        (FileNotFoundError("bucket"), "gone"),
        (OSError(errno.EBUSY, "Please reduce your request rate."), "unreachable"),
        (ConnectionResetError("reset"), "unreachable"),
    ],
)
def test_every_error_has_a_kind(error: Exception, kind: str) -> None:
    assert told(error, "s3://b: can't write x").kind == kind


def test_a_checkpoint_that_never_was_is_no_hindrance(cloud: Cloud) -> None:
    paths = here()
    with driving(paths, silent) as driven:
        ledger = begin(paths)
        report(paths, ledger, 1, saved=False)
        write_checkpoint(paths, 3)
        ledger.close()
    assert driven.problem is None
    assert not any(name.startswith("trials/") for name in cloud.names)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "read-only"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("a tmpfs can't be mounted here (needs root)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_folder_is_one_message(read_only: Path) -> None:
    paths = SweepPaths.of(read_only / "runs", "toy")
    with pytest.raises(
        LedgerError, match=r"storage .*/runs: .*/read-only can't be written \(read-only, or not yours\)"
    ):
        refuse_storage(paths)


def test_a_sweep_whose_folder_has_become_read_only_is_one_message(read_only: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(read_only)], check=True)
    paths = SweepPaths.of(read_only, "toy")
    begin(paths).close()
    before = bodies(paths.root)
    subprocess.run(["mount", "-o", "remount,ro", str(read_only)], check=True)
    with pytest.raises(LedgerError, match=r"driver\.lock can't be written \(Read-only file system\)"):
        Ledger.open(paths.root)
    subprocess.run(["mount", "-o", "remount,rw", str(read_only)], check=True)
    assert bodies(paths.root) == before


def test_a_full_disk_is_no_damage(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "64k") as place:
        (place / "filler").write_bytes(b"x" * 60_000)
        with pytest.raises(LedgerError, match=r"ledger\.sqlite can't be written \(.*full\)"):
            Ledger.create(place / "toy")
