"""A sweep of two trials that end at once and two that wait until there is a file: something to stop, and to go on with."""

from __future__ import annotations

import shutil
from pathlib import Path

TEXT = """\
name: two
pipeline:
  type: custom
  import_path: "toy_pipeline:Toy"
  total: 4
  metrics: {loss: minimize}
  kwargs: {x: 0, wait_at: 0, wait_for: GO}
parameters: {kwargs.x: [0, 1], kwargs.wait_at: [0, 2]}
method: grid
metric: loss
resources: {cpus: 1, gpus: 0}
max_concurrent_trials: 2
"""


def write(folder: Path, go: str | Path, more: str = "", kwargs: str = "") -> Path:
    """The sweep file `two.yaml` and its pipeline in a folder.

    Args:
        folder: where to.
        go: the file that two trials wait for.
        more: further lines of the sweep file.
        kwargs: further arguments of the pipeline, as `, name: value`.
    """
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), folder)
    file = folder / "two.yaml"
    file.write_text(TEXT.replace("GO", f"{go}{kwargs}") + more)
    return file
