"""The toy of `benchmarks/lora_soup_toy.py`: products averaged are better than the mean run, factors averaged far worse."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def toy() -> Any:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "lora_soup_toy.py"
    spec = importlib.util.spec_from_file_location("lora_soup_toy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_runs_with_an_a_of_their_own(toy: Any) -> None:
    found = toy.compare(toy.REGIMES["few rows"], 0, shared=False)
    assert found["exact soup"] > found["mean single"] + 0.01
    assert found["cut to rank 8"] > found["mean single"]
    assert found["factors apart"] < found["exact soup"] - 0.08


def test_runs_with_one_a(toy: Any) -> None:
    found = toy.compare(toy.REGIMES["few rows"], 0, shared=True)
    assert found["exact soup"] > found["mean single"] + 0.01
    assert found["PEFT linear"] < found["exact soup"] - 0.2
