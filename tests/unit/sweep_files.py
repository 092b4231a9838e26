"""A valid sweep file with its data, for the tests of the door."""

import textwrap
from pathlib import Path

import pytest

from sweeps.load import LoadedSweep, load_text
from sweeps.problems import SpecError

SFT = """\
name: demo
pipeline:
  type: sft
  base_model: HuggingFaceTB/SmolLM2-135M-Instruct
  datasets:
    train: {path: data/train.jsonl, type: prompt_completion}
    tune: {fraction: 0.1}
    select: {fraction: 0.1}
    test: {path: data/test.jsonl, type: prompt_completion}
  learning_rate: 2.0e-4
  max_steps: 27
metric: loss
"""

CUSTOM = """\
name: demo
pipeline: {type: custom, import_path: "json:Pipeline", total: 27, metrics: {score: maximize}}
metric: score
"""


def folder_with_data(folder: Path) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    for name in ("train", "tune", "select", "test"):
        rows = "".join(f'{{"prompt": "{name} {i}", "completion": "{i}"}}\n' for i in range(100))
        (folder / "data" / f"{name}.jsonl").write_text(rows)
    return folder


def load(folder: Path, text: str, sets: tuple[str, ...] = ()) -> LoadedSweep:
    return load_text(textwrap.dedent(text).encode(), folder_with_data(folder), sets, "sweep.yaml")


def problems(folder: Path, text: str, sets: tuple[str, ...] = ()) -> dict[str, str]:
    """Place -> the whole printed line, of a file that must be refused."""
    with pytest.raises(SpecError) as caught:
        load(folder, text, sets)
    return {problem.place: str(problem) for problem in caught.value.problems}
