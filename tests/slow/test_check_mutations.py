"""`stockpot check` as users run it, on damaged files: exit status 0 or 2, a readable message, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from mutations import mutated
from sweep_files import folder_with_data

pytestmark = pytest.mark.slow

COUNT = 50


def check(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweeps.cli", "check", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_damaged_files_end_in_zero_or_two(tmp_path):
    folder_with_data(tmp_path)
    file = tmp_path / "sweep.yaml"
    codes = []
    for text in mutated(COUNT):
        file.write_bytes(text.encode())
        done = check(file)
        said = done.stdout + done.stderr
        assert done.returncode in (0, 2), said
        assert "Traceback" not in said
        assert said.strip()
        if done.returncode == 2:
            assert "nothing was written" in done.stderr
        codes.append(done.returncode)
    assert {0, 2} <= set(codes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "sweep.yaml"]
