"""The pieces that carry a sweep to remote storage and back: errors by their kind, names without trust, fences, retries, readers."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cloud import (
    RUN,
    URL,
    Cloud,
    CloudFiles,
    begin,
    bodies,
    drive,
    here,
    killed,
    place,
    raising,
    report,
    silent,
)
from soup_machine import small_disk

import sweeps.riding
from pipelines.finetune.checkpoint import is_whole
from sweeps.commands.places import find_sweep
from sweeps.driving import driving, holder_of
from sweeps.events import Event
from sweeps.fetching import fetch_ledger, fetch_texts
from sweeps.ledger import Ledger, LedgerError
from sweeps.ledger_file import LedgerUnwritable
from sweeps.paths import SweepPaths
from sweeps.schemes import SCHEMES, Scheme
from sweeps.segments import SegmentsDamaged
from sweeps.snapshots import POINTER, send_snapshot
from sweeps.storage import Storage, StorageError, open_storage, told
from sweeps.storage_lease import StorageLease, look


def stored() -> Storage:
    return open_storage(f"{URL}/toy")


@pytest.mark.parametrize(
    ("root", "error", "kind"),
    [
        ("quota-runs/a", OSError("s3://quota-runs/a/toy: read timed out"), "unreachable"),
        ("b/forbidden", OSError("PUT b/forbidden/x-403.json: reset"), "unreachable"),
        ("b", OSError("https://b.example/507/x answered nothing"), "unreachable"),
        ("quota", FileNotFoundError("quota"), "gone"),
        ("b", OSError("request 5070403 timed out"), "unreachable"),
        ("b", OSError("403 for b/x"), "denied"),
        ("b", OSError("507 Insufficient"), "full"),
    ],
)
def test_names_say_nothing_about_what_is_wrong(root: str, error: Exception, kind: str) -> None:
    assert told(error, "can't", root=root).kind == kind


class HttpResponseError(Exception):
    """As azure, gcsfs and aiohttp say what a server answered: a number beside words that need not say it."""

    def __init__(self, text: str, **told: int | str | None) -> None:
        super().__init__(text)
        for name, value in told.items():
            setattr(self, name, value)


class AzureSigningError(Exception):
    """As azure calls a key that is none."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HttpResponseError("Server failed to authenticate the request.", status_code=403), "denied"),
        (HttpResponseError("Anonymous caller", code="401"), "denied"),
        (HttpResponseError("no", status=403), "denied"),
        (HttpResponseError("no", status=507), "full"),
        (HttpResponseError("no", code=None, status_code=429), "unreachable"),
        (HttpResponseError("no", code="AuthorizationFailure"), "unreachable"),
        (AzureSigningError("Invalid base64-encoded string"), "denied"),
        (HttpResponseError("The container does not exist.\nErrorCode:ContainerNotFound", status_code=404), "gone"),
        (ValueError("Bad Request: b/x/o\ninvalid argument"), "unreachable"),
    ],
)
def test_what_a_server_answered_has_a_kind(error: Exception, kind: str) -> None:
    assert told(error, "can't").kind == kind


class AzureFiles(CloudFiles):
    """Speaks as adlfs does: a file is found as a list, no container as nothing, and what made it miss a file is the cause."""

    container = True

    def find(self, path: str, **more: Any) -> Any:
        found = super().find(path, **more)
        return [path] if list(found) == [path] else found

    def cat_file(self, path: str, start: Any = None, end: Any = None, **more: Any) -> bytes:
        try:
            return super().cat_file(path, start, end, **more)
        except FileNotFoundError as error:
            what = "Blob" if self.container else "Container"
            raise error from HttpResponseError(f"It does not exist.\nErrorCode:{what}NotFound", status_code=404)

    def get_file(self, rpath: str, lpath: str, **more: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))


def test_a_file_that_is_found_as_a_list_has_its_size(cloud: Cloud) -> None:
    cloud.write("report.html", b"page")
    files = AzureFiles(skip_instance_cache=True)
    assert Storage(files, cloud.root.rstrip("/"), URL).files("report.html") == {"report.html": 4}


def test_a_container_that_is_gone_is_not_an_empty_one(cloud: Cloud, tmp_path: Path) -> None:
    files = AzureFiles(skip_instance_cache=True)
    storage = Storage(files, cloud.root.rstrip("/"), URL, (OSError, HttpResponseError))
    asked: list[Callable[[], object]] = [
        lambda: storage.get("x"),
        storage.files,
        storage.folders,
        lambda: storage.fetch("x", tmp_path / "x"),
    ]
    assert [ask() for ask in asked[:3]] == [None, {}, []]
    with pytest.raises(StorageError, match="x is missing there"):
        storage.fetch("x", tmp_path / "x")
    files.container = False
    for ask in asked:
        with pytest.raises(StorageError, match="the bucket is not there") as caught:
            ask()
        assert caught.value.kind == "gone"


def test_an_environment_that_opens_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def opens() -> Any:
        raise ValueError("Connection string is either blank or malformed.")

    monkeypatch.setitem(SCHEMES, "s3", Scheme("fsspec", "s3", (), opens, "THE_KEY"))
    with pytest.raises(StorageError, match=r"can't be opened.*malformed.*look at THE_KEY") as caught:
        open_storage(URL)
    assert caught.value.kind == "denied"


@pytest.mark.parametrize("name", ["logs/../../../.bashrc", "logs//x", "./logs/x", "/etc/x", "logs/a\0b", "logs/."])
def test_a_name_that_leads_elsewhere_is_passed_over(cloud: Cloud, name: str) -> None:
    cloud.write("logs/driver.log", b"said")
    cloud.write(name, b"planted")
    paths = here()
    paths.root.mkdir(parents=True)
    assert stored().files("logs") == {"logs/driver.log": 4}
    fetch_texts(stored(), paths)
    assert [path.name for path in paths.root.rglob("*") if path.is_file()] == ["driver.log"]


def test_a_server_that_says_einval_of_what_is_there_is_understood(cloud: Cloud) -> None:
    def no_condition(verb: str, path: str) -> None:
        if verb == "write":
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")

    cloud.write("ledger/000001.jsonl", b"first")
    cloud.breaks(no_condition)
    assert not stored().put_new("ledger/000001.jsonl", b"second")
    with pytest.raises(StorageError):
        stored().put_new("ledger/000002.jsonl", b"second")
    assert cloud.read("ledger/000001.jsonl") == b"first"


def test_pieces_of_a_large_file_count_and_one_deleted_meanwhile_is_no_missing_bucket(
    cloud: Cloud, tmp_path: Path
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"12345")
    moved: list[int] = []
    stored().send(file, "weights", lambda: moved.append(1))
    assert len(moved) == 5

    def deleted(verb: str, path: str) -> None:
        file.unlink()

    cloud.breaks(deleted)
    with pytest.raises(FileNotFoundError):
        stored().send(file, "weights")


def test_a_removal_that_fails_is_made_up_for(cloud: Cloud) -> None:
    failed: list[str] = []

    def once(verb: str, path: str) -> None:
        if verb == "remove" and "checkpoint-1/" in path and len(failed) < 2:
            failed.append(path)
            raise TimeoutError("no answer")

    cloud.breaks(once)
    paths = here()
    with driving(paths, silent) as driven:
        ledger = begin(paths)
        report(paths, ledger, 1)
        ledger.append([Event("checkpoint_deleted", {"run": RUN, "attempt": 0, "resource": 1, "bytes": 9})])
        ledger.ship(force=True)
        report(paths, ledger, 3)
        ledger.close()
    assert driven.problem is None
    assert len(failed) == 2
    assert cloud.reported == [1, 3]
    assert not any("checkpoint-1/" in name for name in cloud.names)


def test_deleted_weights_that_lie_there_still_are_not_fetched_and_go(
    cloud: Cloud, elsewhere: Callable[[str], SweepPaths]
) -> None:
    drive(1, 3)
    kept = {name: cloud.read(name) for name in cloud.names if "checkpoint-1/" in name}
    with driving(here(), silent):
        ledger = Ledger.open(here().root)
        ledger.append([Event("checkpoint_deleted", {"run": RUN, "attempt": 0, "resource": 1, "bytes": 9})])
        ledger.close()
    for name, data in kept.items():  # as a driver leaves it that was killed before it removed them
        cloud.write(name, data)
    two = elsewhere("two")
    assert drive() is None
    assert is_whole(place(two, 3))
    assert not place(two, 1).exists()
    assert not any("checkpoint-1/" in name for name in cloud.names)


def test_texts_come_back_before_weights(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    drive(1)
    cloud.write("logs/driver.log", b"first words\n")
    cloud.write("trackers/wandb.json", b"{}")
    two = elsewhere("two")
    asked = len(cloud.calls)
    assert drive() is None
    read = [path for verb, path in cloud.calls[asked:] if verb == "read"]
    first_weights = min(number for number, path in enumerate(read) if path.startswith("trials/"))
    assert {"logs/driver.log", "trackers/wandb.json"} <= set(read[:first_weights])
    assert two.log("driver").read_text() == "first words\n"


class Lost:
    """A lease that another driver takes over at the n-th question."""

    lost = ""

    def __init__(self, after: int) -> None:
        self.left = after

    def refuse(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StorageError("taken", "another driver has it")


@pytest.mark.parametrize("after", [0, 1])
def test_a_snapshot_of_a_driver_that_lost_the_sweep_changes_nothing(cloud: Cloud, after: int) -> None:
    drive(1)
    before = cloud.read(POINTER)
    old = [name for name in cloud.names if name.startswith("snapshot/")]
    with pytest.raises(StorageError):
        send_snapshot(stored(), here(), 1, 4, Lost(after).refuse)
    assert cloud.read(POINTER) == before
    assert set(old) <= set(cloud.names)


def test_the_lease_is_asked_about_right_before_a_segment(cloud: Cloud) -> None:
    """Another driver comes while the checkpoint goes: neither its segment nor anything after it is sent."""
    drive(1)
    before = cloud.segments
    met: list[str] = []

    def taken(verb: str, path: str) -> None:
        if verb == "write" and path.endswith("checkpoint-3/complete.json"):
            met.append(path)
            cloud.write("lease/000003.json", json.dumps({"pid": 7, "host": "other", "nonce": "x"}).encode())

    cloud.breaks(taken)
    left = drive(3)
    assert met
    assert left is not None
    assert left.kind == "taken"
    assert cloud.segments == before


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EIO, "input/output error"), None),
        (KeyError("lease"), "damaged"),
        (SegmentsDamaged("bad"), "damaged"),
    ],
)
def test_what_fails_here_is_tried_again_unless_it_is_damage(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str | None
) -> None:
    whole = sweeps.riding.segment_lines
    tries = itertools.count()

    def flaky(name: str, data: bytes) -> Any:
        if next(tries) == 0:
            raise error
        return whole(name, data)

    monkeypatch.setattr(sweeps.riding, "segment_lines", flaky)
    said: list[str] = []
    left = drive(1, say=said.append)
    assert next(tries) > 0
    assert (left.kind if left is not None else None) == kind
    assert any(str(error) in text for text in said)


def test_a_request_to_stop_stands_until_it_was_passed_on(cloud: Cloud) -> None:
    paths = here()
    paths.root.mkdir(parents=True)
    asked: list[bool] = []

    def on_stop(text: bytes) -> None:
        asked.append("stop.request" in cloud.names)
        if len(asked) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    lease = StorageLease.take(stored(), paths, look(stored()), on_stop)
    cloud.write("stop.request", b"{}")
    for _ in range(4000):
        if "stop.request" not in cloud.names:
            break
        sweeps.riding.time.sleep(0.005)
    lease.close()
    assert asked[:2] == [True, True]


def test_one_nonce_a_working_folder_is_noted_before_the_lease_is_taken(cloud: Cloud) -> None:
    drive(1)
    nonce = json.loads(here().lease.read_text())["nonce"]
    killed(cloud, 1)
    cloud.breaks(raising(TimeoutError("no answer"), "read", about="lease/000002.json"))
    with pytest.raises(StorageError):  # a kill between the lease and everything after it
        drive()
    cloud.breaks(None)
    assert "lease/000002.json" in cloud.names
    assert drive(3) is None
    holders = [
        json.loads(cloud.read(name)) for name in cloud.names if name.startswith("lease/") and name.endswith("json")
    ]
    assert [holder["nonce"] for holder in holders] == [nonce] * 3
    assert not list(here().root.parent.glob("toy.overtaken-*"))


def test_who_loses_the_race_for_a_lease_leaves_nothing(cloud: Cloud) -> None:
    other = json.dumps({"pid": 7, "host": "other", "nonce": "x"}).encode()
    met: list[str] = []

    def first(verb: str, path: str) -> None:
        if verb == "write" and path.endswith("lease/000001.json") and not met:
            met.append(path)
            cloud.write("lease/000001.json", other)

    cloud.breaks(first)
    with pytest.raises(StorageError) as refused:
        drive(1)
    assert met
    assert refused.value.kind == "taken"
    assert cloud.read("lease/000001.json") == other
    assert not here().root.exists()


def test_a_left_over_wal_is_not_played_into_a_snapshot(
    cloud: Cloud, elsewhere: Callable[[str], SweepPaths], tmp_path: Path
) -> None:
    drive(1)
    first = bodies(here().root)
    two = elsewhere("two")
    two.root.mkdir(parents=True)
    other = begin(SweepPaths(tmp_path / "other"))
    other.append([Event("stop_requested", {"by": "command"})] * 40)
    for end in ("-wal", "-shm"):
        shutil.copyfile(tmp_path / "other" / f"ledger.sqlite{end}", two.root / f"ledger.sqlite{end}")
    other.close()
    assert fetch_ledger(stored(), two)
    assert bodies(two.root) == first


def test_a_full_disk_is_no_damage_to_what_comes_back(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(1)
    cloud.forget(POINTER)
    with small_disk(tmp_path / "small", "64k") as folder:
        paths = SweepPaths(folder / "toy", url=f"{URL}/toy")
        paths.segments.mkdir(parents=True)
        for name in cloud.segments:
            (paths.root / name).write_bytes(cloud.read(name))
        (folder / "filler").write_bytes(b"x" * 40_000)
        with pytest.raises(LedgerUnwritable, match="free some space"):
            fetch_ledger(stored(), paths)


def test_a_reader_s_damaged_copy_is_fetched_anew(cloud: Cloud, elsewhere: Callable[[str], SweepPaths]) -> None:
    drive(1)
    first = bodies(here().root)
    elsewhere("two")
    copy = find_sweep("toy", URL)
    with sqlite3.connect(copy.ledger) as database:
        database.execute("UPDATE events SET body = '{}' WHERE seq = 2")
    database.close()
    with pytest.raises(LedgerError):
        bodies(copy.root)
    assert bodies(find_sweep("toy", URL).root) == first


def test_who_follows_a_log_from_elsewhere_gets_what_was_added(
    cloud: Cloud, elsewhere: Callable[[str], SweepPaths]
) -> None:
    drive(1)
    cloud.write("logs/driver.log", b"one\n")
    elsewhere("two")
    copy = find_sweep("toy", URL)
    cloud.write("logs/driver.log", b"one\ntwo\n")
    holder_of(copy, ask=True)
    assert copy.log("driver").read_text() == "one\n"
    holder_of(copy, ask=True, texts=True)
    assert copy.log("driver").read_text() == "one\ntwo\n"
