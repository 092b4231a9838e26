"""One small sweep as a user runs it: the quickstart's file on a tiny model, Ray, four short trials, a soup and its verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.tiny import save_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SMALLER = {
    "name": "smoke",
    "pipeline.base_model": "{folder}/model",
    "pipeline.max_steps": 2,
    "pipeline.precision": "fp32",
    "pipeline.micro_batch_size": 2,
    "pipeline.sequence_len": 256,
    "pipeline.datasets.tune.limit": 6,
    "pipeline.datasets.select.limit": 6,
    "pipeline.datasets.test.limit": 6,
    "budget.trials": 4,
    "early_terminate.min": 1,
    "early_terminate.finalists": 2,
    "soup.top": 2,
    "evaluate": "[{type: json_fields, max_new_tokens: 8, when: final}]",
    "resources.cpus": 1,
}


def stockpot(*arguments: str, cwd: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without a terminal."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("stockpot")), *arguments],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_quickstart_walks_from_file_to_verdict(tmp_path: Path) -> None:
    """With SmolLM2 the same way is walked by `tests/slow/test_first_steps.py` and `test_tutorial.py`."""
    save_model(tmp_path / "model")
    sets = [f"--set={key}={value}".replace("{folder}", str(tmp_path)) for key, value in SMALLER.items()]
    done = stockpot("submit", str(ROOT / "examples" / "quickstart.yaml"), *sets, cwd=tmp_path, seconds=500)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stdout + done.stderr

    shown = stockpot("show", "smoke", "--json", cwd=tmp_path, seconds=120)
    assert shown.returncode == 0, shown.stderr
    table = json.loads(shown.stdout)
    kinds = [row["kind"] for row in table["rows"]]
    assert sorted(kinds) == ["baseline", "soup", "trial", "trial", "trial", "trial"]
    assert [row["state"] for row in table["rows"] if row["kind"] == "trial"].count("finished") == 2

    root = tmp_path / "stockpot-runs" / "smoke"
    soups = list(root.glob("soups/*/soup.json"))
    assert len(soups) == 1
    assert list(root.glob("trials/*/seed-0/attempt-0/checkpoint-2/complete.json"))
    assert not [path for path in root.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]

    again = stockpot("submit", str(ROOT / "examples" / "quickstart.yaml"), *sets, cwd=tmp_path, seconds=60)
    assert again.returncode == 2, again.stdout
    assert "resume" in again.stderr
