"""`benchmarks/chaos.py` with each fault once: a sweep on three nodes ends as the same sweep in peace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHAOS = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"
FAULTS = ["worker", "node", "driver", "straggler", "hang", "store", "head"]


def test_each_fault_once_loses_nothing(tmp_path: Path) -> None:
    words = [
        "--once",
        "--every",
        "3",
        "--trials",
        "12",
        "--step",
        "1",
        "--faults",
        *FAULTS,
        "--folder",
        str(tmp_path / "f"),
    ]
    done = subprocess.run(
        [sys.executable, str(CHAOS), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHAOS.parents[1])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert dict(re.findall(r"^  (\w+) +(\d+) times$", done.stdout, re.M)) == dict.fromkeys(FAULTS, "1"), done.stdout
    assert "0 lost or doubled" in done.stdout
