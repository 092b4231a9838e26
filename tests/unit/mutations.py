"""Seeded damage to sweep files, as hands and editors do it."""

import random
import re
from collections.abc import Iterator

from sweep_files import CUSTOM, SFT

SEEDS = [
    SFT
    + """\
storage: runs
parameters:
  learning_rate: {distribution: log_uniform_values, min: 1e-5, max: 1.0e-3}
  adapter: {choose: {lora: {lora_r: [8, 16], lora_target_modules: [[q_proj], all-linear]}, none: {}}}
  together: {shape: [{micro_batch_size: 1, eval_batch_size: 2}, {micro_batch_size: 2, eval_batch_size: 4}]}
method: {type: tpe, seed: 3}
budget: {trials: 12, hours: 6}
early_terminate: {type: asha, min: 3, eta: 3, finalists: 4}
seeds: {tune: [0], test: [100, 101]}
resources: {cpus: auto, gpus: 0.5}
on_failure: {oom: halve_micro_batch, max_restarts: 2}
keep: {best: 4, disk_gb: 1.5}
evaluate: [perplexity, {type: exact_match, max_new_tokens: 8, answer_regex: "#### (.*)"}]
soup: {method: greedy, top: 4}
env: {HF_TOKEN: "${HF_TOKEN}"}
baseline: {learning_rate: 1e-4}
""",
    CUSTOM
    + """\
parameters:
  kwargs.depth: {min: 1, max: 4}
  kwargs:
    rate: {distribution: q_uniform, min: 0.5, max: 1.0, q: 0.1}
    model: {choose: {a: {width: [1, 2]}, b: {}}}
method: grid
early_terminate: none
max_concurrent_trials: 2
""",
    """\
name: plain
pipeline: &base
  type: sft
  base_model: HuggingFaceTB/SmolLM2-135M-Instruct
  datasets: {train: {path: data/train.jsonl, type: prompt_completion}, tune: {path: data/tune.jsonl, type: prompt_completion}}
  num_epochs: 1.5
  lora_target_modules: [q_proj, v_proj]
metric: {name: tune/loss, goal: minimize}
parameters:
  datasets.train.limit: [40, 80]
  lora_r:
    values:
      - 8
      - 16
""",
]
VALUES = (
    *(
        "null",
        "true",
        "false",
        "no",
        "on",
        "0",
        "1",
        "-1",
        "2.5",
        "1e-4",
        "1e400",
        "99999999999999999999",
        ".nan",
        ".inf",
    ),
    *("''", "x", "'a b'", "[]", "{}", "[[]]", "[{}]", "{a: 1}", "[1, 2]", "[a]", "2020-01-01", "0x10", "auto", "tpe"),
    *("loss", "sft", "custom", "sweep://a/best", "package://a/b", "./x", "s3://a", "${X}", "&a", "*a", "!!str"),
    *("!!python/name:os", "<<"),
)
PALETTE = "\t\n  :,-[]{}#&*!|>'\"%@`?~.0123456789eabxyz_/\\\x00\x7fé\u2028\U0001f600"
KEYS = (
    *("type", "name", "min", "max", "values", "value", "q", "choose", "together", "distribution", "lora_rank"),
    *("pipeline", "parameters", "metric", "kwargs", "<<", "tune"),
)


def mutated(count: int) -> Iterator[str]:
    """`count` damaged files, the same ones every time."""
    for index in range(count):
        generator = random.Random(index)
        text = SEEDS[index % len(SEEDS)]
        for _ in range(generator.choice((1, 1, 2, 4))):
            text = generator.choice(MUTATIONS)(text, generator)
        yield text


def _characters(text: str, generator: random.Random) -> str:
    at = generator.randrange(len(text) + 1)
    what = generator.choice((generator.choice(PALETTE), "", generator.choice(PALETTE) * 3))
    return text[:at] + what + text[at + generator.choice((0, 1, 3)) :]


def _lines(text: str, generator: random.Random) -> str:
    lines = text.splitlines()
    if not lines:
        return text
    at, other = generator.randrange(len(lines)), generator.randrange(len(lines))
    action = generator.randrange(5)
    if action == 0:
        del lines[at]
    elif action == 1:
        lines.insert(other, lines[at])
    elif action == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif action == 3:
        lines[at] = "  " + lines[at]
    else:
        lines[at] = lines[at].removeprefix("  ")
    return "\n".join(lines) + "\n"


def _words(text: str, generator: random.Random, new: str, wanted: str) -> str:
    """Another word in the place of a key (before ':') or of a value."""
    pattern = r"[A-Za-z_][\w.]*(?=:)" if wanted == "key" else r"(?<=[:,\[] )[^,:\[\]{}\n]+|(?<=\[)[^,:\[\]{}\n]+"
    places = list(re.finditer(pattern, text))
    if not places:
        return text
    place = generator.choice(places)
    return text[: place.start()] + new + text[place.end() :]


def _value(text: str, generator: random.Random) -> str:
    return _words(text, generator, generator.choice(VALUES), "value")


def _key(text: str, generator: random.Random) -> str:
    return _words(text, generator, generator.choice(KEYS), "key")


def _section(text: str, generator: random.Random) -> str:
    """A whole top-level section becomes another value."""
    lines = text.splitlines()
    tops = [index for index, line in enumerate(lines) if line[:1].isalpha()]
    if not tops:
        return text
    at = generator.choice(tops)
    end = next((index for index in tops if index > at), len(lines))
    return "\n".join([*lines[:at], f"{lines[at].split(':')[0]}: {generator.choice(VALUES)}", *lines[end:]]) + "\n"


MUTATIONS = (_characters, _lines, _value, _value, _key, _section)
