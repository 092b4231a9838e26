"""The average of 8 Llama-shaped checkpoints in bfloat16, by Stockpot and by mergekit, as whole processes in one run.

The checkpoints (0.94 GB each by default) are made in a temporary folder and deleted afterwards. The two take turns, the first one
alternating; a turn of each warms up and is not counted. Printed are medians of wall and CPU seconds, the sampled peak of
anonymous resident memory (`RssAnon`), for ours also over what the process had before it began to merge, and whether
all tensors are equal to the bit.

    python benchmarks/merge.py [--folder FOLDER] [--models 8] [--turns 3] [--layers 24] [--method average]

Needs mergekit, which the `dev` extra installs, and room for the checkpoints, two results, and the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 64000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
OURS = """
import json, sys
from pipelines.soups import merge
import pipelines.soups.arithmetic
def anon():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
start = anon()
merge(json.loads(sys.argv[1]))
print(start)
"""


def make(folder: Path, models: int, layers: int) -> list[Path]:
    """Checkpoints around one base, so that they look like fine-tunes of it."""
    import torch
    from safetensors.torch import save_file

    width, inner, vocabulary = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        shapes |= {f"{stem}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{stem}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{stem}mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{stem}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (width,)
    made = [folder / f"model-{number}" for number in range(models)]
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.002
    base = {}
    for place, (name, shape) in enumerate(shapes.items()):
        base[name] = torch.empty(shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(place)).bfloat16()
    for number, path in enumerate(made):
        path.mkdir()
        tensors = {}
        for name, shape in shapes.items():
            own = noise.roll(7919 * (number + 1)).repeat(base[name].numel() // len(noise) + 1)[: base[name].numel()]
            tensors[name] = (base[name] + own.reshape(shape)).bfloat16()
        save_file(tensors, str(path / "model.safetensors"), metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    return made


def watched(command: list[str], threads: int) -> dict[str, float]:
    """Run a process to its end: seconds, CPU seconds, peak RssAnon, and what it printed last where that is a number."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    peak = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))])
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.005)
    out, errors = process.communicate()
    wall = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{errors[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = out.split()[-1:]
    start = float(last[0]) if last and last[0].isdigit() else 0.0
    return {"wall": wall, "cpu": used, "peak": float(peak), "over_start": peak - start}


def equal(left: Path, right: Path) -> tuple[int, int]:
    """(tensors, how many differ in a bit) of two results, sharded or not."""
    import torch

    from pipelines.soups.files import Mapped, ModelFiles

    ours, theirs, mapped, differing = ModelFiles(left).tensors, ModelFiles(right).tensors, Mapped(), 0
    assert set(ours) == set(theirs), "both must hold the same tensors"
    for name, tensor in ours.items():
        pair = [mapped.numbers(one, 0, one.numel) for one in (tensor, theirs[name])]
        differing += not torch.equal(pair[0].view(torch.int16), pair[1].view(torch.int16))
    return len(ours), differing


def main() -> None:
    """Measure and print one line each, and the whole as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3, help="turns that are counted")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    yaml_command = Path(sys.executable).with_name("mergekit-yaml")
    found: dict[str, list[dict[str, float]]] = {"stockpot": [], "mergekit": []}
    with tempfile.TemporaryDirectory(prefix="stockpot-merge-", dir=given.folder) as own:
        folder = Path(own)
        models = make(folder, given.models, given.layers)
        size = (models[0] / "model.safetensors").stat().st_size
        weight = 1 / len(models)
        recipe = {
            "merge_method": "linear",
            "dtype": "bfloat16",
            "models": [{"model": str(path), "parameters": {"weight": weight}} for path in models],
        }
        (folder / "merge.yml").write_text(json.dumps(recipe))
        payload = {"ingredients": [[str(path), weight] for path in models], "out": str(folder / "ours")}
        commands = {
            "stockpot": [sys.executable, "-c", OURS, json.dumps(payload)],
            "mergekit": [str(yaml_command), str(folder / "merge.yml"), str(folder / "theirs"), "--no-copy-tokenizer"],
        }
        for turn in range(given.turns + 1):
            for name in sorted(commands, reverse=bool(turn % 2)):
                shutil.rmtree(folder / {"stockpot": "ours", "mergekit": "theirs"}[name], ignore_errors=True)
                found[name].append(watched(commands[name], given.threads))
        tensors, differing = equal(folder / "ours", folder / "theirs")
    medians = {
        name: {key: statistics.median(turn[key] for turn in turns[1:]) for key in turns[0]}
        for name, turns in found.items()
    }
    for name, middle in medians.items():
        walls = [turn["wall"] for turn in found[name][1:]]
        print(
            f"{name:>9}: {middle['wall']:6.2f} s wall ({min(walls):.2f} to {max(walls):.2f}), {middle['cpu']:6.2f} s CPU, "
            f"peak RssAnon {middle['peak'] / 1e9:.3f} GB"
        )
    ratios = [b["wall"] / a["wall"] for a, b in zip(found["stockpot"][1:], found["mergekit"][1:], strict=True)]
    print(
        f"stockpot is {statistics.median(ratios):.2f} times as fast (paired; {min(ratios):.2f} to {max(ratios):.2f}), its peak is "
        f"{max(turn['over_start'] for turn in found['stockpot']) / 1e9:.3f} GB over the start; "
        f"{differing} of {tensors} tensors differ"
    )
    print(json.dumps({"models": len(models), "bytes": size, "turns": given.turns, "ratios": ratios, **medians}))


if __name__ == "__main__":
    main()
