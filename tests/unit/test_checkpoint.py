"""Checkpoints are whole or they do not exist, and keep their report."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluators.base import ItemSet, Report, summarise
from pipelines.finetune.checkpoint import (
    COMPLETE,
    content_hash,
    is_whole,
    newest_whole,
    placing,
    read_report,
    write_complete,
)


def report(step: int = 3) -> Report:
    items = ItemSet(("a", "b", "c"), (1.0, 2.0, 3.0), ("g", "g", "h"))
    scores = (
        summarise("loss", "tune", "minimize", items, [0.1, math.nan, 0.7]),
        summarise("exact_match", "tune", "maximize", ItemSet(("a", "b")), [math.nan, math.nan]),
    )
    return Report(step, scores, {"train/loss": math.nan, "cost/seconds": 1.5, "x": math.inf}, f"checkpoint-{step}")


def write(attempt: Path, step: int) -> Path:
    with placing(attempt / f"checkpoint-{step}") as folder:
        (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * step)
        (folder / "inner").mkdir()
        (folder / "inner" / "state.json").write_text("{}")
        write_complete(folder, report(step))
    return attempt / f"checkpoint-{step}"


def test_a_report_comes_back_bit_by_bit(tmp_path: Path) -> None:
    before, after = report(), read_report(write(tmp_path, 3))
    assert (after.resource, after.checkpoint) == (3, "checkpoint-3")
    assert math.isnan(after.telemetry["train/loss"])
    assert after.telemetry["x"] == math.inf
    for old, new in zip(before.scores, after.scores, strict=True):
        assert new.record() == old.record()
        assert new.item_set == old.item_set
        assert old.items is not None
        assert new.items is not None
        assert new.items.dtype == np.float32
        assert new.items.tobytes() == old.items.tobytes()


def test_the_newest_whole_one_is_found_and_torn_ones_are_passed_over(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "nowhere") is None
    folders = [write(tmp_path, step) for step in (2, 10, 30)]
    assert newest_whole(tmp_path) == folders[2]
    (folders[2] / COMPLETE).unlink()
    assert newest_whole(tmp_path) == folders[1]
    (tmp_path / "checkpoint-99").mkdir()
    (tmp_path / "checkpoint-100-old").mkdir()
    assert newest_whole(tmp_path) == folders[1]


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "half of complete.json", "remove inner"])
def test_any_harm_unmakes_it(tmp_path: Path, harm: str) -> None:
    folder = write(tmp_path, 5)
    assert is_whole(folder)
    weights, complete = folder / "adapter_model.safetensors", folder / COMPLETE
    body = weights.read_bytes()
    if harm == "flip":
        weights.write_bytes(body[:100] + bytes([body[100] ^ 1]) + body[101:])
    elif harm == "cut":
        weights.write_bytes(body[:-1])
    elif harm == "remove":
        weights.unlink()
    elif harm == "remove inner":
        (folder / "inner" / "state.json").unlink()
    else:
        complete.write_text(complete.read_text()[: complete.stat().st_size // 2])
    assert not is_whole(folder)
    assert newest_whole(tmp_path) is None


def test_a_writer_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    folder = write(tmp_path, 5)
    before = content_hash(folder)

    def killed() -> None:
        with placing(folder) as aside:
            (aside / "adapter_model.safetensors").write_bytes(b"half")
            raise SystemExit

    with pytest.raises(SystemExit):
        killed()
    assert is_whole(folder)
    assert content_hash(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-5"]


def test_left_overs_of_killed_writers_go(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-5.123-abc.tmp").mkdir()
    write(tmp_path, 5)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-5"]


def test_the_content_hash_is_of_the_weights_alone(tmp_path: Path) -> None:
    one, two = write(tmp_path, 5), write(tmp_path, 6)
    assert content_hash(one) != content_hash(two)
    with placing(tmp_path / "checkpoint-7") as folder:
        (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 5)
        (folder / "inner").mkdir()
        (folder / "inner" / "state.json").write_text("{}")
        (folder / "state.json").write_text("other")
        write_complete(folder, report(7))
    assert content_hash(tmp_path / "checkpoint-7") == content_hash(one)


def test_no_checkpoint_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a checkpoint"):
        read_report(tmp_path)


def test_the_module_needs_no_torch() -> None:
    import subprocess

    code = "import sys, pipelines.finetune.checkpoint, pipelines.splits; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
