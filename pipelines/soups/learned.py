"""Weights of a soup's ingredients, trained by gradient: one set for all, one a layer, or one a tensor.

Source: Wortsman et al., "Model soups" (ICML 2022, arXiv 2203.05482), appendix I, and the authors' `learned_bylayer.py`: α =
softmax(β·a) over the models, a = 0 at first (uniform), β = 1 a learned temperature; AdamW, lr .05, no decay. For adapters
it is CAT of Prabhakar et al. (arXiv 2410.13025): y += Σᵢ αᵢ sᵢ BᵢAᵢ x, exact and at the cost of one adapter of rank Σr; the
models themselves must fit in memory together where they are full. Forward passes go through `torch.func.functional_call`;
nothing but a and β has a gradient. Left out: training on anything but the loss.

The weights of the best epoch (the uniform ones count as one) are kept; training ends after `patience` epochs without a
better one. With equal seeds and threads the answer is the same.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipelines.finetune.checkpoint import placing
from pipelines.stage import UserError

ADAPTER = "adapter_model.safetensors"
_LAYER = re.compile(r"\.(?:layers|layer|h|blocks|block)\.(\d+)\.")
_PART = re.compile(r"(.+)\.lora_(?:A|B)\.")
COPIED = (".json", ".txt", ".model", ".jinja")


def group_of(name: str, per: str) -> str:
    """The set of weights that a tensor goes by: `all`, `layer.<n>` or `rest`, or its own name (its module's, of LoRA)."""
    if per == "model":
        return "all"
    if per == "layer":
        found = _LAYER.search(f".{name}")
        return f"layer.{found[1]}" if found else "rest"
    part = _PART.match(name)
    return part[1] if part else name


@dataclass
class Parts:
    """What is mixed: the model that runs, and how its parameters come of the weights.

    Attributes:
        model: a causal language model.
        groups: name -> set of weights.
        stacked: name -> of a full model (ingredients, ...) tensors; of LoRA's B (out, Σr).
        owner: name -> (Σr,) which ingredient a column of B belongs to; empty for full models.
    """

    model: Any
    groups: dict[str, str]
    stacked: dict[str, torch.Tensor]
    owner: dict[str, torch.Tensor]

    def mixed(self, alpha: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters under sets of weights (ingredients,)."""
        made = {}
        for name, tensor in self.stacked.items():
            weights = alpha[self.groups[name]]
            if name in self.owner:
                made[f"model.{name}"] = tensor * weights[self.owner[name]]
            else:
                made[f"model.{name}"] = torch.einsum("k,k...->...", weights, tensor)
        return made


class _Nats(torch.nn.Module):
    """Summed loss of a batch, and its tokens, as a module for `functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, mask: Any, labels: Any) -> tuple[torch.Tensor, int]:
        from pipelines.lm import trained_logits

        logits, targets, _ = trained_logits(self.model, ids, mask, labels)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), len(targets)


def learn(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Train a soup's weights on a split; what `sweeps/bench.py` has called on a worker.

    Args:
        payload: `config` (a trial's resolved configuration), `folders` (the ingredients), `split`, `settings` (`per`,
            `epochs`, `learning_rate`, `temperature`, `patience`, `seed`) and `cache`.

    Returns:
        `coefficients` (set -> one weight an ingredient), `losses` (nats a token before the first and after each epoch),
        `temperature` and `epochs`, how many were run.

    Raises:
        UserError: if the ingredients can't be mixed by weights.
    """
    from pipelines.config import SFTConfig, parse_pipeline
    from pipelines.finetune.data import encode
    from pipelines.splits import load_splits

    config = parse_pipeline(payload["config"])
    if not isinstance(config, SFTConfig):
        raise UserError(f"no soup: method: learned can train weights for pipeline type sft, not {config.type}")
    settings, folders = payload["settings"], [Path(folder) for folder in payload["folders"]]
    model, tokenizer, parts = _load(config, folders, settings["per"], payload.get("cache"))
    rows = load_splits(config.datasets, config.seed_data).rows(payload["split"])
    encoded = [row for row in (encode(row, tokenizer, config.sequence_len) for row in rows) if row.trained]
    if not encoded:
        raise UserError(f"no soup: no row of {payload['split']} has a token that is trained on")
    nats = _Nats(model)
    groups = sorted(set(parts.groups.values()))
    logits = torch.zeros(len(groups), len(folders), requires_grad=True)
    beta = torch.ones((), requires_grad=bool(settings["temperature"]))
    optimizer = torch.optim.AdamW(
        [logits, beta] if settings["temperature"] else [logits], lr=settings["learning_rate"], weight_decay=0.0
    )

    def alpha() -> dict[str, torch.Tensor]:
        return dict(zip(groups, torch.softmax(beta * logits, dim=1), strict=True))

    def run(batch: Any) -> tuple[torch.Tensor, int]:
        from pipelines.lm import autocast

        with autocast("cpu", config.precision):
            found: tuple[torch.Tensor, int] = torch.func.functional_call(nats, parts.mixed(alpha()), batch)
        return found

    def whole() -> float:
        with torch.no_grad():
            done = [run(batch) for batch in _batches(encoded, config, tokenizer, None)]
        return float(sum(loss.double() for loss, _ in done)) / sum(tokens for _, tokens in done)

    losses, best, waited = [whole()], alpha(), 0
    temperature = 1.0
    for epoch in range(settings["epochs"]):
        for batch in _batches(encoded, config, tokenizer, settings["seed"] + epoch):
            loss, tokens = run(batch)
            optimizer.zero_grad()
            (loss / tokens).backward()
            optimizer.step()
        losses.append(whole())
        if losses[-1] < min(losses[:-1]):
            best, temperature, waited = alpha(), float(beta.detach()), 0
            continue
        waited += 1
        if waited == settings["patience"]:
            break
    coefficients = {name: _rounded(weights) for name, weights in best.items()}
    return {
        "coefficients": coefficients,
        "losses": losses,
        "temperature": temperature,
        "epochs": len(losses) - 1,
    }


def merge_learned(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Make the weights of a learned soup; `pipelines.soups.merge` with a method of type `learned`.

    Raises:
        UserError: if the ingredients can't be mixed by weights.
    """
    from pipelines.soups import merge

    method = payload["method"]
    coefficients: Mapping[str, Sequence[float]] = method["coefficients"]
    folders = [Path(folder) for folder, _ in payload["ingredients"]]
    count = len(folders)
    if not (folders[0] / "adapter_config.json").is_file():
        if payload.get("scale", 1.0) != 1.0:
            raise UserError("no soup: learned weights of full models can't be moved toward the base")
        return _merge_models(folders, coefficients, method["per"], Path(payload["out"]))
    with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
        scaled = []
        for place, folder in enumerate(folders):
            _refuse_dora(folder)
            copy = Path(own) / str(place)
            copy.mkdir()
            shutil.copyfile(folder / "adapter_config.json", copy / "adapter_config.json")
            tensors = load_file(folder / ADAPTER)
            for name in [name for name in tensors if ".lora_B." in name]:
                weight = coefficients[group_of(_inside(name), method["per"])][place]
                tensors[name] = tensors[name].to(torch.float32) * (weight * count)
            save_file(tensors, copy / ADAPTER, metadata={"format": "pt"})
            scaled.append([str(copy), 1.0 / count])
        rest = {key: payload[key] for key in ("out", "cache", "rank", "energy") if key in payload}
        if payload.get("scale", 1.0) != 1.0:
            rest |= {"scale": payload["scale"], "base": payload.get("base")}
        return merge({**rest, "ingredients": scaled})


def _merge_models(
    folders: Sequence[Path], coefficients: Mapping[str, Sequence[float]], per: str, out: Path
) -> dict[str, Any]:
    """The average of full models with weights by tensor, summed in float32."""
    from pipelines.soups.arithmetic import folder_bytes, folder_hash

    opened = [_Files(folder) for folder in folders]
    merged = {}
    for name in sorted(set.intersection(*(set(one.where) for one in opened))):
        first = opened[0].tensor(name)
        if not first.is_floating_point():
            merged[name] = first
            continue
        weights = coefficients[group_of(name, per)]
        total = torch.zeros(first.shape, dtype=torch.promote_types(first.dtype, torch.float32))
        for one, weight in zip(opened, weights, strict=True):
            total.add_(one.tensor(name).to(total.dtype), alpha=weight)
        merged[name] = total.to(first.dtype)
    with placing(out) as folder:
        save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})
        skipped = ("complete.json", "state.json", "soup.json", "model.safetensors.index.json")
        for path in sorted(folders[0].iterdir()):
            if path.is_file() and path.suffix in COPIED and path.name not in skipped:
                shutil.copyfile(path, folder / path.name)
    return {"kind": "full", "hash": folder_hash(out), "bytes": folder_bytes(out)}


class _Files:
    """A model's safetensors, one file or sharded."""

    def __init__(self, folder: Path) -> None:
        self.where = {}
        for path in sorted(folder.glob("model*.safetensors")):
            shard = safe_open(str(path), framework="pt")
            self.where.update(dict.fromkeys(shard.keys(), shard))

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor's values."""
        tensor: torch.Tensor = self.where[name].get_tensor(name)
        return tensor


def _load(config: Any, folders: Sequence[Path], per: str, cache: str | None) -> tuple[Any, Any, Parts]:
    """The model, its tokenizer, and the ingredients as functions of weights."""
    from pipelines.finetune.model import BaseModels

    models = BaseModels(cache)
    if not (folders[0] / "adapter_config.json").is_file():
        loaded = models.load(str(folders[0]))
        opened = [_Files(folder) for folder in folders]
        names = [name for name, _ in loaded.model.named_parameters() if all(name in one.where for one in opened)]
        stacked = {name: torch.stack([one.tensor(name).float() for one in opened]) for name in names}
        loaded.model.requires_grad_(False)
        groups = {name: group_of(name, per) for name in names}
        return loaded.model, loaded.tokenizer, Parts(loaded.model, groups, stacked, {})
    loaded = models.load(config.base_model)
    model, owner = _stacked_adapter(loaded.model, folders)
    model.requires_grad_(False)
    count = len(folders)
    stacked = {name: value.detach() * count for name, value in model.named_parameters() if ".lora_B." in name}
    groups = {name: group_of(_inside(name), per) for name in stacked}
    return model, loaded.tokenizer, Parts(model, groups, stacked, owner)


def _stacked_adapter(model: Any, folders: Sequence[Path]) -> tuple[Any, dict[str, torch.Tensor]]:
    """All adapters as one of rank Σr on the model, each at 1/n of its strength, and whose a column of its B is."""
    from pipelines.finetune.adapters import attach
    from pipelines.soups import merge

    for folder in folders:
        _refuse_dora(folder)
    ranks = [_ranks(folder) for folder in folders]
    with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
        out = Path(own) / "all"
        share = 1.0 / len(folders)
        merge({"ingredients": [[str(folder), share] for folder in folders], "out": str(out), "cache": None})
        adapted = attach(model, out)
    owner = {}
    for name, value in adapted.named_parameters():
        if ".lora_B." in name:
            part = _inside(name)
            columns = [place for place, known in enumerate(ranks) for _ in range(known.get(part, 0))]
            if len(columns) != value.shape[1]:
                raise UserError(
                    f"no soup: {part} has rank {value.shape[1]} in the sum, but {len(columns)} in its parts"
                )
            owner[name] = torch.tensor(columns)
    return adapted, owner


def _ranks(folder: Path) -> dict[str, int]:
    """Module -> rank of its B."""
    with safe_open(str(folder / ADAPTER), framework="pt") as file:
        return {_inside(name): file.get_slice(name).get_shape()[1] for name in file.keys() if ".lora_B." in name}  # noqa: SIM118


def _inside(name: str) -> str:
    """A module's name in the base model, from a parameter's."""
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


def _refuse_dora(folder: Path) -> None:
    record = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if record.get("peft_type") != "LORA" or record.get("use_dora"):
        kind = "DoRA" if record.get("use_dora") else record.get("peft_type")
        raise UserError(f"no soup: {folder} is a {kind} adapter; learned weights are for LoRA, give another method")


def _batches(rows: Sequence[Any], config: Any, tokenizer: Any, seed: int | None) -> Iterator[Any]:
    """Padded batches; in a seeded order, or without a seed by length."""
    from pipelines.lm import pad

    if seed is None:
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    else:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    size = config.eval_batch_size
    for start in range(0, len(order), size):
        yield pad([rows[place] for place in order[start : start + size]], tokenizer.pad_token_id)


def _rounded(weights: torch.Tensor) -> list[float]:
    """Weights as the ledger holds them; they sum to one."""
    values = [round(float(weight), 6) for weight in weights.detach().double()]
    values[0] = round(1.0 - sum(values[1:]), 6)
    return values
