"""A minute of `benchmarks/chaos.py`: sweeps on three nodes under every fault end as the same sweep in peace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHAOS = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"
FAULTS = ["worker", "node", "driver", "straggler", "slow", "hang", "store", "head"]
FAULTS += ["disk"] if os.geteuid() == 0 else []


def test_a_minute_of_every_fault_loses_nothing(tmp_path: Path) -> None:
    words = ["--seconds", "60", "--every", "3", "--trials", "30", "--step", "0.4"]
    done = subprocess.run(
        [sys.executable, str(CHAOS), *words, "--faults", *FAULTS, "--folder", str(tmp_path / "f")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHAOS.parents[1])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    times = {fault: int(count) for fault, count in re.findall(r"^  (\w+) +(\d+) times", done.stdout, re.M)}
    assert times.keys() == set(FAULTS)
    assert all(times.values()), done.stdout
    resumed = re.search(r"leases that went again: \d+, (\d+) of them from a checkpoint", done.stdout)
    assert resumed is not None
    assert int(resumed[1]) > 0, done.stdout
