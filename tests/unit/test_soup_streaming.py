"""Streamed merges: equal to the plain functions, whole or in parts; what is refused, and what stays when the disk is full."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from soup_machine import small_disk

from pipelines.soups import METHODS, merge, method_function, streaming
from pipelines.soups import plan as planning
from pipelines.soups.arithmetic import folder_bytes, folder_hash, merge_models, plan_models
from pipelines.soups.config import parse_method
from pipelines.soups.grams import GRAMS, gather_grams
from pipelines.soups.parts import finish_merge, merge_part, plan_merge
from pipelines.stage import UserError

SETTINGS = {
    "average": [{}],
    "slerp": [{}],
    "task_arithmetic": [{"scaling": 0.7}],
    "ties": [{}, {"density": 0.01, "elect": "count"}],
    "dare": [{}, {"rescale": "l1"}, {"elect": "sum", "density": 0.3}],
    "della": [{}, {"rescale": "l1", "elect": "none"}],
    "model_stock": [{}, {"per": "row"}],
    "regmean": [{}],
}
CASES = [(name, parameters) for name, several in SETTINGS.items() for parameters in several]
SHAPES = {
    "model.embed_tokens.weight": (41, 12),
    "model.layers.0.mlp.weight": (30, 12),
    "model.layers.1.mlp.weight": (12, 30),
    "model.norm.weight": (12,),
    "model.scale": (),
    "model.nothing": (0, 3),
}


def write(folder: Path, seed: int, dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    tensors["model.steps"] = torch.arange(5)
    tensors.update({name.replace("__", "."): tensor for name, tensor in more.items()})
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "padding": seed}))
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(str(path))
    return found


def add_grams(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    grams = {}
    for name in ("model.layers.0.mlp.weight", "model.layers.1.mlp.weight"):
        rows = torch.randn(50, SHAPES[name][1], generator=generator)
        grams[name] = rows.T @ rows / 50
    save_file(grams, str(folder / GRAMS))
    return grams


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of at most 64 numbers."""
    monkeypatch.setattr(planning, "FEWEST", 8)
    monkeypatch.setattr(planning, "MOST", 64)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "parameters"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pieces_are_the_plain_function(
    tmp_path: Path, name: str, parameters: dict[str, object], dtype: torch.dtype
) -> None:
    folders = [write(tmp_path / str(seed), seed, dtype) for seed in range(3)]
    grams = [add_grams(folder, seed) for seed, folder in enumerate(folders)] if name == "regmean" else []
    base = write(tmp_path / "base", 9, dtype)
    weights = [0.5, 0.3, 0.2]
    method = parse_method({"type": name, **parameters})
    result = merge(
        {
            "ingredients": [[str(folder), weight] for folder, weight in zip(folders, weights, strict=True)],
            "out": str(tmp_path / "soup"),
            "method": method.model_dump(mode="json"),
            "base": str(base),
            "scale": 0.8,
            "seed": 3,
        }
    )
    merged, inputs, below = read(tmp_path / "soup"), [read(folder) for folder in folders], read(base)
    assert set(merged) == set(inputs[0])
    for tensor, value in merged.items():
        if tensor == "model.steps":
            assert torch.equal(value, torch.arange(5))
            continue
        more = {"grams": [own[tensor] for own in grams]} if grams and tensor in grams[0] else {}
        own = method_function(method)(
            [one[tensor] for one in inputs], weights, below[tensor], name=tensor, seed=3, **more
        )
        expected = below[tensor].to(own.dtype) + 0.8 * (own - below[tensor].to(own.dtype))
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float64: 1e-10}[dtype]
        torch.testing.assert_close(value, expected.to(dtype), rtol=tolerance, atol=tolerance)
    assert result == {"kind": "full", "hash": folder_hash(tmp_path / "soup"), "bytes": folder_bytes(tmp_path / "soup")}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "parameters"), CASES)
@pytest.mark.parametrize("shard_bytes", [10**9, 1500])
def test_parts_are_the_whole_bit_for_bit(
    tmp_path: Path, name: str, parameters: dict[str, object], shard_bytes: int
) -> None:
    """Parts written in any order, one of them twice, by threads at once."""
    folders = [write(tmp_path / str(seed), seed, torch.bfloat16) for seed in range(3)]
    if name == "regmean":
        [add_grams(folder, seed) for seed, folder in enumerate(folders)]
    base = write(tmp_path / "base", 9, torch.bfloat16)
    ingredients = [(folder, weight) for folder, weight in zip(folders, [0.5, 0.3, 0.2], strict=True)]
    method = parse_method({"type": name, **parameters})

    def plan(out: Path, parts: int) -> planning.MergePlan:
        return plan_models(ingredients, out, method=method, base=base, scale=0.9, parts=parts, shard_bytes=shard_bytes)

    whole = plan(tmp_path / "whole", 1)
    known = streaming.merge_whole(whole)
    parted = plan(tmp_path / "parted", 4)
    assert 2 <= len(parted.parts) <= 4
    streaming.start_merge(parted)
    payloads = [{"plan": parted.model_dump(mode="json"), "part": part} for part in range(len(parted.parts))]
    threads = [
        threading.Thread(target=streaming.merge_part, args=(payload,)) for payload in [*payloads[::-1], payloads[0]]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert streaming.finish_merge(parted) == known
    assert folder_hash(tmp_path / "parted") == folder_hash(tmp_path / "whole") == folder_hash(tmp_path / "whole", known)
    if shard_bytes < 10**9:
        assert len(list((tmp_path / "whole").glob("model-*-of-*.safetensors"))) >= 2
        index = json.loads((tmp_path / "whole" / "model.safetensors.index.json").read_text())
        for tensor, file in index["weight_map"].items():
            with safe_open(str(tmp_path / "whole" / file), "pt") as opened:
                assert tensor in opened.keys()  # noqa: SIM118


def test_the_table_of_classes_is_the_table_of_functions() -> None:
    assert set(planning.CLASSES) == set(METHODS)


@pytest.mark.parametrize("where", ["ingredient", "base"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["average", "ties", "dare", "della", "model_stock", "slerp", "regmean"])
def test_what_is_not_finite_is_refused_by_name(tmp_path: Path, name: str, value: float, where: str) -> None:
    bad = torch.ones(12)
    bad[5] = value
    if name in ("average", "regmean") and where == "base":
        return
    folders = [
        write(tmp_path / "a", 0),
        write(tmp_path / "b", 1, **({"model__norm__weight": bad} if where == "ingredient" else {})),
    ]
    base = write(tmp_path / "base", 2, **({"model__norm__weight": bad} if where == "base" else {}))
    if name == "regmean":
        [add_grams(folder, 0) for folder in folders]
    with pytest.raises(
        UserError, match=rf"{'b' if where == 'ingredient' else 'base'} holds NaN .* model\.norm\.weight"
    ):
        merge_models(
            [(folder, 0.5) for folder in folders], tmp_path / "soup", method=parse_method({"type": name}), base=base
        )
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "base"}


def test_large_numbers_are_no_mistake_and_overflow_is(tmp_path: Path) -> None:
    """Sums of finite numbers that overflow float32 are not taken for infinite numbers."""
    huge = torch.full((100,), 3e38)
    a, b = write(tmp_path / "a", 0, more__weight=huge), write(tmp_path / "b", 1, more__weight=huge)
    merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    torch.testing.assert_close(read(tmp_path / "soup")["more.weight"], huge)
    half = torch.full((4,), 60000.0, dtype=torch.float16)
    c, d = write(tmp_path / "c", 0, more__weight=half), write(tmp_path / "d", 1, more__weight=-half)
    with pytest.raises(UserError, match="overflows F16"):
        merge_models([(c, 2.0), (d, -1.0)], tmp_path / "no", method=parse_method({"type": "task_arithmetic"}), base=d)


def test_refuses_other_tokenizers_and_takes_other_padding(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    (b / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0}}}))
    with pytest.raises(UserError, match=r"a and .*b have different tokenizers \(tokenizer\.json\)"):
        merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    (b / "tokenizer.json").unlink()
    merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")


def test_what_needs_a_base_says_so(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    pair = [(a, 0.5), (b, 0.5)]
    with pytest.raises(UserError, match="method ties needs the base model"):
        merge_models(pair, tmp_path / "soup", method=parse_method({"type": "ties"}))
    with pytest.raises(UserError, match=r"scale 0\.5 needs the base model"):
        merge_models(pair, tmp_path / "soup", scale=0.5)
    base = write(tmp_path / "base", 2, model__norm__weight=torch.ones(13))
    with pytest.raises(UserError, match=r"model\.norm\.weight is \(12,\) in .*a, but \(13,\) in the base"):
        merge_models(pair, tmp_path / "soup", scale=0.5, base=base)
    with pytest.raises(UserError, match=f"regmean needs {GRAMS} beside every ingredient, but .*a has none"):
        merge_models(pair, tmp_path / "soup", method=parse_method({"type": "regmean"}))


def test_torn_and_quantised_files_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    raw = (b / "model.safetensors").read_bytes()
    for torn in (raw[:-1], raw[:4], b"\xff" * 100):
        (b / "model.safetensors").write_bytes(torn)
        with pytest.raises(UserError, match="torn"):
            merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    save_file({"w": torch.ones(3).to(torch.float8_e4m3fn)}, str(b / "model.safetensors"))
    with pytest.raises(UserError, match=r"w in .* is F8_E4M3, which can't be merged"):
        merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")


def test_a_full_disk_leaves_the_old_soup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any write: making the files, a piece, the index and copies."""
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    merge_models([(a, 1.0)], tmp_path / "soup")
    before = folder_hash(tmp_path / "soup")

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place, name in ((os, "posix_fallocate"), (os, "pwrite"), (streaming.shutil, "copyfile")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, full)
            with pytest.raises(OSError, match=r"disk of .* is full: .*the soup that was there is left") as caught:
                merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")
            assert caught.value.errno == errno.ENOSPC
        assert folder_hash(tmp_path / "soup") == before
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "soup"}
    merge_models([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    assert folder_hash(tmp_path / "soup") != before


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


def test_a_disk_that_is_really_full(tmp_path: Path, tiny_disk: Path) -> None:
    more = {"more__weight": torch.ones(9000)}
    a, b = write(tmp_path / "a", 0, **more), write(tmp_path / "b", 1, **more)
    merge_models([(a, 1.0)], tiny_disk / "soup")
    before = folder_hash(tiny_disk / "soup")
    with pytest.raises(OSError, match="is full: the soup needs 4"):
        merge_models([(a, 0.5), (b, 0.5)], tiny_disk / "soup")
    assert folder_hash(tiny_disk / "soup") == before
    assert [path.name for path in tiny_disk.iterdir()] == ["soup"]


def test_left_overs_of_killed_merges_are_removed(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 0)
    plan = plan_models([(a, 1.0)], tmp_path / "soup")
    streaming.start_merge(plan)
    (tmp_path / ".soup.123.tmp").mkdir()
    merge_models([(a, 1.0)], tmp_path / "soup")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "soup"}


def test_anonymous_memory_does_not_grow_with_the_models(tmp_path: Path) -> None:
    """Four models of 32 MB whose changes are 256 MB in float32: under 150 MB over the start, in a process of its own."""
    tensors = {"model.embed_tokens.weight": torch.zeros(2_000_000, 8, dtype=torch.bfloat16)}
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        tensors["model.embed_tokens.weight"].fill_(seed + 1)
        save_file(tensors, str(folder / "model.safetensors"))
        (folder / "config.json").write_text("{}")
    program = f"""
import threading, time
from pathlib import Path
from pipelines.soups.arithmetic import merge_models
from pipelines.soups.config import parse_method
from pipelines.soups.parts import finish_merge, merge_part, plan_merge
def anon():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
folders = [Path({str(tmp_path)!r}) / str(seed) for seed in range(4)]
start, seen, done = anon(), [], threading.Event()
def watch():
    while not done.is_set():
        seen.append(anon())
        time.sleep(0.005)
thread = threading.Thread(target=watch, daemon=True)
thread.start()
for method in ({{"type": "average"}}, {{"type": "ties"}}):
    merge_models([(folder, 1 / 4) for folder in folders], Path({str(tmp_path)!r}) / "soup", method=parse_method(method), base=folders[0])
done.set()
thread.join()
print(max(seen) - start)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150_000


def test_grams_are_those_of_the_layers_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, 6)
            self.first, self.second = torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(self.embed(input_ids))))

    net = Net()
    batches = []
    for seed in range(3):
        ids = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[1, 4:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    assert gather_grams(net, batches, tmp_path / GRAMS) == 3 * 11
    found = load_file(str(tmp_path / GRAMS))
    rows = torch.cat([net.embed(batch["input_ids"])[batch["attention_mask"].bool()] for batch in batches]).detach()
    torch.testing.assert_close(found["first.weight"], rows.T @ rows / len(rows))
    rows = torch.relu(net.first(rows)).detach()
    torch.testing.assert_close(found["second.weight"], rows.T @ rows / len(rows))
    assert set(found) == {"first.weight", "second.weight"}
    with pytest.raises(ValueError, match="at least one token"):
        gather_grams(net, [], tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == [GRAMS]


def test_calls_on_workers_make_the_soup_of_one_call(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(seed), seed) for seed in range(2)]
    base = write(tmp_path / "base", 9)
    payload = {"ingredients": [[str(folder), 0.5] for folder in folders], "base": str(base), "scale": 0.5}
    whole = merge({**payload, "out": str(tmp_path / "whole")})
    begun = plan_merge({**payload, "out": str(tmp_path / "parted"), "parts": 3})
    assert begun["parts"] == 3
    done = [merge_part(json.loads(json.dumps({"plan": begun["plan"], "part": part}))) for part in (2, 0, 1)]
    assert sum(part["bytes"] for part in done) == sum(t.numel() * t.element_size() for t in read(folders[0]).values())
    assert finish_merge({"plan": begun["plan"]}) == whole
