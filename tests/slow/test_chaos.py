"""A minute of `benchmarks/chaos.py`: a sweep on three nodes under seeded faults ends as the same sweep in peace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHAOS = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"


def test_a_minute_of_faults_loses_nothing(tmp_path: Path) -> None:
    words = ["--seconds", "60", "--every", "3", "--seed", "1", "--trials", "24", "--folder", str(tmp_path / "f")]
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
    assert "0 lost or doubled" in done.stdout
