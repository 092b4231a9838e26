"""Flipped bits, cut files and lost segments: what is read is what was written, or it is said to be damaged."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

import pytest
from simulated_sweeps import simulate

from evaluators.base import ItemSet, Report, summarise
from pipelines.finetune.checkpoint import content_hash, is_whole, placing, read_report, report_record, write_complete
from sweeps.cli import main
from sweeps.events import Event, Items
from sweeps.ledger import Ledger, LedgerError
from sweeps.paths import SweepPaths

PARTS = [part if part < 3 else pytest.param(part, marks=pytest.mark.slow) for part in range(10)]
"""Seeds, in tenths: three with every test, the others with the slow ones."""


def harm(path: Path, draw: random.Random) -> None:
    """Flip bits, write other bytes, or cut the end off."""
    body = bytearray(path.read_bytes())
    kind = draw.randrange(4)
    if kind == 3:
        del body[draw.randrange(len(body)) :]
    else:
        for _ in range(draw.choice([1, 1, 4, 64])):
            at = draw.randrange(len(body))
            body[at] = body[at] ^ (1 << draw.randrange(8)) if kind else draw.randrange(256)
    path.write_bytes(body)


def facts(root: Path) -> list[object]:
    """All that a reader gets."""
    ledger = Ledger.read(root)
    try:
        return told(ledger)
    finally:
        ledger.drop()


def told(ledger: Ledger) -> list[object]:
    events = list(ledger.events())
    found: list[object] = [(event.seq, event.time, event.kind, event.body) for event in events]
    for number in range(30):
        stored = ledger.items("0000-aa/seed-0", number, "loss", "tune")
        found.append(None if stored is None else (stored.item_set, stored.values.tobytes()))
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with events, items and several segments."""
    root = tmp_path_factory.mktemp("plain") / "s"
    ledger = Ledger.create(root, durable=False)
    ledger.append([Event("sweep_created", {"name": "s", "spec": {}, "versions": {}, "space": {}})])
    draw = random.Random(1)
    for number in range(30):
        ids = tuple(f"row-{i}" for i in range(8))
        score = summarise("loss", "tune", "minimize", ItemSet(ids, None, ids), [draw.random() for _ in ids])
        ledger.append([Event("note", {"i": number, "text": "ü\u2028" * 9})], [Items("0000-aa/seed-0", number, score)])
        if number % 10 == 9:
            ledger.ship(force=True)
    ledger.close()
    return root


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_ledger_is_said_to_be_one(plain: Path, tmp_path: Path, part: int) -> None:
    """600 live files: right, or an error; with the segments beside it, a driver never has less than they hold."""
    before, refused = facts(plain), 0
    for seed in range(60 * part, 60 * part + 60):
        root = tmp_path / str(seed)
        shutil.copytree(plain, root)
        harm(SweepPaths(root).ledger, random.Random(seed))
        try:
            assert facts(root) == before
        except LedgerError:
            refused += 1
        with contextlib.suppress(LedgerError):
            driver = Ledger.open(root, durable=False)
            try:
                assert told(driver) == before
            finally:
                driver.drop()
        shutil.rmtree(root)
    assert refused > 10


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_segment_rebuilds_nothing_wrong(plain: Path, tmp_path: Path, part: int) -> None:
    """300 segments, the live file gone."""
    before, refused = facts(plain), 0
    for seed in range(30 * part, 30 * part + 30):
        root, draw = tmp_path / str(seed), random.Random(seed)
        shutil.copytree(plain, root)
        SweepPaths(root).ledger.unlink()
        harm(draw.choice(sorted(SweepPaths(root).segments.glob("*.jsonl"))), draw)
        try:
            assert facts(root) == before
        except LedgerError:
            refused += 1
        shutil.rmtree(root)
    assert refused > 10


def test_the_commands_say_it_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """60 sweeps, shown: the same table, or exit status 2 and one line."""
    loaded = simulate(tmp_path / "plain", trials=6)
    root = loaded.paths.root
    loaded.paths.resolved_spec.write_text(json.dumps(loaded.record()))
    assert main(["show", str(root), "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    statuses = set()
    for seed in range(60):
        copy = tmp_path / str(seed) / root.name
        shutil.copytree(root, copy)
        harm(SweepPaths(copy).ledger, random.Random(seed))
        statuses.add(status := main(["show", str(copy), "--json"]))
        out, errors = capsys.readouterr()
        if status == 0:
            assert json.loads(out) | {"folder": ""} == before | {"folder": ""}
        else:
            assert (status, len(errors.strip().splitlines())) == (2, 1), errors
        shutil.rmtree(copy.parent)
    assert statuses == {0, 2}


def test_a_damaged_checkpoint_is_none(tmp_path: Path) -> None:
    """300 checkpoints: whole with the same report and weights, or not there."""
    ids = ("a", "b", "c")
    score = summarise("loss", "tune", "minimize", ItemSet(ids, None, ids), [0.25, 0.5, 1.0])
    report = Report(3, (score,), {"train/loss": 0.5}, "checkpoint-3")
    with placing(tmp_path / "checkpoint-3") as folder:
        (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 8)
        (folder / "state.json").write_text(json.dumps({"step": 3}))
        write_complete(folder, report)
    whole, before = tmp_path / "checkpoint-3", content_hash(tmp_path / "checkpoint-3")
    lost = 0
    for seed in range(300):
        draw, copy = random.Random(seed), tmp_path / "copy"
        shutil.copytree(whole, copy)
        harm(copy / draw.choice(["adapter_model.safetensors", "state.json", "complete.json", "complete.json"]), draw)
        if is_whole(copy):
            assert report_record(read_report(copy)) == report_record(report)
            assert content_hash(copy) == before
        else:
            lost += 1
        shutil.rmtree(copy)
    assert lost > 250


def test_harm_is_harm(tmp_path: Path) -> None:
    """The mutations do change files: a test that changes nothing would pass."""
    file = tmp_path / "x"
    changed = 0
    for seed in range(100):
        file.write_bytes(b"abcdefgh" * 64)
        harm(file, random.Random(seed))
        changed += file.read_bytes() != b"abcdefgh" * 64
    assert changed > 90
