"""The ledger: durable, exclusive, readable beside its driver, rebuilt from segments."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from soup_machine import small_disk

from evaluators.base import ItemSet, summarise
from sweeps.events import Event, Items
from sweeps.ledger import SHIP_EVENTS, Ledger, LedgerBegun, LedgerError, number
from sweeps.paths import SweepPaths
from sweeps.segments import Segments


def score(values, name="loss"):
    ids = tuple(f"row-{i}" for i in range(len(values)))
    return summarise(name, "tune", "minimize", ItemSet(ids, weights=(2.0,) * len(ids), groups=ids), values)


def filled(root, events=5):
    ledger = Ledger.create(root)
    ledger.append([Event("sweep_created", {"name": "s", "spec": {}, "versions": {}, "space": {}})])
    for i in range(events):
        ledger.append(
            [Event("note", {"i": i, "text": "ü"})], [Items("0000-aa/seed-0", i, score([0.5, float("nan"), i]))]
        )
    return ledger


def bodies(ledger):
    return [(e.seq, e.kind, e.body) for e in ledger.events()]


def test_numbers_and_times_are_given_in_order(tmp_path):
    ledger = Ledger.create(tmp_path / "s")
    stored = ledger.append([Event("a", {}), Event("b", {"x": 1})])
    stored += ledger.append([Event("c", {})])
    assert [e.seq for e in stored] == [1, 2, 3]
    assert [e.kind for e in ledger.events(after=1)] == ["b", "c"]
    assert stored[0].time == stored[1].time <= stored[2].time
    assert list(ledger.events()) == stored


def test_events_are_paged(tmp_path):
    ledger = Ledger.create(tmp_path / "s", durable=False)
    ledger.append([Event("n", {"i": i}) for i in range(2500)])
    assert [e.body["i"] for e in ledger.events()] == list(range(2500))
    assert [e.seq for e in ledger.events(after=2499)] == [2500]


def test_a_transaction_is_all_or_nothing(tmp_path):
    ledger = filled(tmp_path / "s")
    before = bodies(ledger)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.append([Event("good", {}), Event("bad", {"x": float("nan")})])
    assert bodies(ledger) == before
    assert ledger.append([Event("next", {})])[0].seq == before[-1][0] + 1


def test_ctrl_c_right_after_a_commit_leaves_the_ledger_writable(tmp_path, monkeypatch):
    ledger = filled(tmp_path / "s")
    writing = ledger._writing

    @contextlib.contextmanager
    def pressed():
        with writing():
            yield
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_writing", pressed)
        with pytest.raises(KeyboardInterrupt):
            ledger.append([Event("written", {})])
    ledger.append([Event("next", {})])
    assert [event.kind for event in ledger.events()][-2:] == ["written", "next"]


def test_items_come_back_with_their_set(tmp_path):
    ledger = filled(tmp_path / "s")
    stored = ledger.items("0000-aa/seed-0", 3, "loss", "tune")
    np.testing.assert_array_equal(stored.values, np.float32([0.5, np.nan, 3]))
    assert stored.item_set == score([0, 0, 0]).item_set
    assert ledger.items("0000-aa/seed-0", 99, "loss", "tune") is None
    with Ledger.read(tmp_path / "s")._database as database:
        assert database.execute("SELECT count(*) FROM item_sets").fetchone() == (1,)


def test_a_second_driver_is_told_who_holds_the_sweep(tmp_path):
    ledger = filled(tmp_path / "s")
    with pytest.raises(LedgerError, match=f"driven by pid {os.getpid()} on .* since .*stockpot stop s"):
        Ledger.open(tmp_path / "s")
    assert ledger.holder["pid"] == os.getpid()
    ledger.close()
    assert ledger.holder is None
    Ledger.open(tmp_path / "s").close()


def test_the_lock_of_a_killed_driver_frees_itself(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from sweeps.events import Event; from sweeps.ledger import Ledger\n"
        "l = Ledger.create(Path(sys.argv[1])); l.append([Event('sweep_created', {'name': 's', 'spec': {}})])\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    root = tmp_path / "s"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LedgerError, match=f"pid {child.pid} "):
            Ledger.open(root)
        assert Ledger.read(root).holder["pid"] == child.pid
    finally:
        child.kill()
        child.wait()
    ledger = Ledger.open(root)
    assert [e.kind for e in ledger.events()] == ["sweep_created"]


def test_a_name_in_use_is_refused_and_an_empty_start_is_not(tmp_path):
    Ledger.create(tmp_path / "s").drop()
    filled(tmp_path / "s").close()
    with pytest.raises(LedgerError, match="stockpot resume s"):
        Ledger.create(tmp_path / "s")
    with pytest.raises(LedgerError, match="no sweep"):
        Ledger.open(tmp_path / "other")
    with pytest.raises(LedgerError, match="no sweep"):
        Ledger.read(tmp_path / "other")


def test_readers_see_a_running_driver_and_write_nothing(tmp_path):
    ledger = filled(tmp_path / "s", events=1)
    reader = Ledger.read(tmp_path / "s")
    ledger.append([Event("later", {})])
    assert [e.kind for e in reader.events()] == ["sweep_created", "note", "later"]
    with pytest.raises(LedgerError, match="reader"):
        reader.append([Event("no", {})])
    reader.close()
    assert ledger.append([Event("more", {})])[0].seq == 4


def test_what_a_driver_ships_while_a_reader_opens_is_no_damage(tmp_path, monkeypatch):
    ledger, last = filled(tmp_path / "s", events=1), Segments.last.fget

    def meanwhile(segments):
        ledger.append([Event("meanwhile", {})])
        ledger.ship(force=True)
        return last(segments)

    monkeypatch.setattr(Segments, "last", property(meanwhile))
    assert [e.kind for e in Ledger.read(tmp_path / "s").events()] == ["sweep_created", "note", "meanwhile"]


def test_readers_open_a_closed_sweep(tmp_path):
    ledger = filled(tmp_path / "s")
    expected = bodies(ledger)
    ledger.close()
    assert bodies(Ledger.read(tmp_path / "s")) == expected


def test_a_lost_ledger_is_rebuilt_from_its_segments(tmp_path):
    root = tmp_path / "s"
    ledger = filled(root)
    ledger.ship(force=True)
    ledger.append([Event("x", {})], [Items("0000-aa/seed-0", 2, score([7, 8, 9, 10]))])
    expected = list(ledger.events())
    ledger.close()
    for path in root.glob("ledger.sqlite*"):
        path.unlink()
    assert list(Ledger.read(root).events()) == expected
    again = Ledger.open(root)
    assert list(again.events()) == expected
    np.testing.assert_array_equal(again.items("0000-aa/seed-0", 2, "loss", "tune").values, np.float32([7, 8, 9, 10]))
    assert again.items("0000-aa/seed-0", 1, "loss", "tune").item_set.ids == ("row-0", "row-1", "row-2")
    again.append([Event("after", {})])
    again.close()
    assert sorted(p.name for p in (root / "ledger").iterdir()) == ["000001.jsonl", "000002.jsonl", "000003.jsonl"]


def test_a_live_file_behind_its_segments_catches_up(tmp_path):
    root = tmp_path / "s"
    ledger = filled(root, events=2)
    ledger.close()
    kept = (root / "ledger.sqlite").read_bytes()
    ledger = Ledger.open(root)
    ledger.append([Event("late", {})])
    expected = list(ledger.events())
    ledger.close()
    (root / "ledger.sqlite").write_bytes(kept)
    assert list(Ledger.open(root).events()) == expected


def test_a_missing_or_broken_segment_is_named(tmp_path):
    root = tmp_path / "s"
    ledger = filled(root, events=1)
    for i in range(3):
        ledger.append([Event("n", {"i": i})])
        ledger.ship(force=True)
    ledger.close()
    for path in root.glob("ledger.sqlite*"):
        path.unlink()
    second = SweepPaths(root).segments / "000002.jsonl"
    text = second.read_text()
    second.unlink()
    with pytest.raises(LedgerError, match=r"missing before 000003\.jsonl"):
        Ledger.open(root)
    second.write_text(text[: len(text) // 2])
    with pytest.raises(LedgerError, match=r"000002\.jsonl"):
        Ledger.open(root)
    second.write_text(text)
    assert len(list(Ledger.open(root).events())) == 5


def test_damage_is_said_with_the_way_out(tmp_path):
    root = tmp_path / "s"
    filled(root).close()
    (root / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match=r"damaged .*move it away"):
        Ledger.open(root)
    (root / "ledger.sqlite").unlink()
    assert len(list(Ledger.open(root).events())) == 6


def test_segments_are_due_by_count_or_time(tmp_path, monkeypatch):
    root = tmp_path / "s"
    ledger = Ledger.create(root, durable=False)
    for _ in range(SHIP_EVENTS - 1):
        ledger.append([Event("n", {})])
        ledger.ship()
    assert not (root / "ledger").exists()
    ledger.append([Event("n", {})])
    ledger.ship()
    first = (root / "ledger" / "000001.jsonl").read_text().splitlines()
    assert json.loads(first[0]) == {"format": 2, "after": 0, "until": 100}
    assert len(first) == 102
    ledger.append([Event("n", {})])
    ledger.ship()
    assert not (root / "ledger" / "000002.jsonl").exists()
    ledger._shipped_at -= 2.1
    ledger.ship()
    assert (root / "ledger" / "000002.jsonl").exists()


def test_numbers_that_json_lacks():
    assert [number(x) for x in (1.5, float("nan"), float("inf"), float("-inf"))] == [1.5, None, "inf", "-inf"]


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        ledger = filled(disk / "s")
        before = bodies(ledger)
        filler = disk / "filler"
        filler.write_bytes(b"0" * shutil.disk_usage(disk).free)
        with pytest.raises(LedgerError, match=r"ledger\.sqlite can't be written \(.*full\): free some space there"):
            ledger.append([Event("note", {"text": "x" * 400_000})])
        filler.unlink()
        assert bodies(ledger) == before
        (again,) = ledger.append([Event("note", {"i": 9})])
        assert again.seq == before[-1][0] + 1
        ledger.close()


def test_a_ledger_whose_tables_are_not_made_yet_is_of_a_sweep_that_begins(tmp_path):
    SweepPaths(tmp_path).ledger.touch()
    with pytest.raises(LedgerBegun, match="just beginning; ask again in a moment"):
        Ledger.read(tmp_path)
