"""Gram matrices beside a run's checkpoint, gathered on rows that the run was trained on, where they are not there yet.

RegMean (Jin et al. 2023, arXiv 2212.09849) weighs every ingredient by the inputs that its linear layers see. They are those
of the run's own model on its own rows, every token that is not padding; a fixed random sample of the rows is enough. The
matrices of adapters are those of the layers that any of the ingredients adapts, with the adapter folded in.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.soups.adapter_files import CONFIG, PREFIX, WEIGHTS
from pipelines.soups.files import ModelFiles, read_header
from pipelines.soups.grams import GRAMS, gather_grams
from pipelines.stage import UserError

if TYPE_CHECKING:
    from pipelines.config import FineTuneConfig

ROWS = 256
"""Rows of train at most; how many the authors' code takes."""
_ADAPTED = re.compile(re.escape(PREFIX) + r"(.+?)\.(?:lora|hada|lokr|vera)_")


def gather(payload: Mapping[str, Any]) -> dict[str, int]:
    """See to it that a run's Gram matrices lie beside its weights; what `sweeps/gathering.py` has called on a worker.

    Args:
        payload: `config` (the run's resolved configuration), `folder` (its checkpoint), `folders` (of all ingredients) and
            `cache`.

    Returns:
        `tokens`: how many were gone over; 0 where the matrices were there.

    Raises:
        UserError: if they are not there and can't be gathered.
        OSError: if the disk is full.
    """
    from pipelines.config import FineTuneConfig, parse_pipeline

    folder = Path(payload["folder"])
    adapter = (folder / CONFIG).is_file()
    there = read_header(folder / GRAMS) if (folder / GRAMS).is_file() else {}
    wanted = adapted_weights([Path(one) for one in payload["folders"]]) if adapter else set()
    if there and wanted <= set(there):
        return {"tokens": 0}
    config = parse_pipeline(payload["config"])
    if not isinstance(config, FineTuneConfig):
        raise UserError(
            f"no soup: {folder} has no {GRAMS}, and regmean gathers it for pipeline type sft, not {config.type}; "
            "write it with each checkpoint (pipelines.soups.grams.gather_grams)"
        )
    for torn in folder.glob(f".{GRAMS}.*.tmp"):
        torn.unlink(missing_ok=True)
    names = wanted | set(there) if adapter else set(ModelFiles(folder).tensors)
    return {"tokens": _gather(config, folder, names, payload.get("cache"))}


def adapted_weights(folders: Sequence[Path]) -> set[str]:
    """Names of the base model's weights that any of the adapters changes by a product."""
    found = set()
    for folder in folders:
        with contextlib.suppress(UserError, OSError):  # a torn one is told, and left out, before anything is averaged
            matches = (_ADAPTED.match(name) for name in read_header(folder / WEIGHTS))
            found |= {f"{match[1]}.weight" for match in matches if match}
    return found


def _gather(config: FineTuneConfig, folder: Path, names: Collection[str], cache: str | None) -> int:
    from pipelines.finetune.adapters import attach
    from pipelines.finetune.model import BaseModels

    models = BaseModels(cache)
    if (folder / CONFIG).is_file():
        loaded = models.load(config.base_model, trust_remote_code=config.trust_remote_code)
        model = attach(loaded.model, folder).merge_and_unload()
    else:
        loaded = models.load(str(folder), trust_remote_code=config.trust_remote_code)
        model = loaded.model
    return gather_grams(model, _batches(config, loaded.tokenizer), folder / GRAMS, names)


def _batches(config: FineTuneConfig, tokenizer: Any) -> Iterator[Mapping[str, torch.Tensor]]:
    """A seeded sample of train, in batches of the size that was trained with."""
    from pipelines.finetune.data import encode
    from pipelines.lm import pad
    from pipelines.splits import load_splits

    train = load_splits(config.datasets, config.seed_data).train
    places = np.random.default_rng(config.seed_data).permutation(len(train))[:ROWS]
    rows = [encode(train[int(place)], tokenizer, config.sequence_len) for place in np.sort(places)]
    rows = [row for row in rows if row.trained]
    for start in range(0, len(rows), config.micro_batch_size):
        ids, mask, _ = pad(rows[start : start + config.micro_batch_size], tokenizer.pad_token_id)
        yield {"input_ids": ids, "attention_mask": mask}
