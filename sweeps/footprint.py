"""Disk that a sweep needs: checkpoints as `keep` holds them, those being written, the final step's, and the soup's.

Example:
    >>> footprint(loaded, checkpoint=58_000_000, weights=19_000_000, slots=2)["total"]
    812000000
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import FineTuneConfig, RetrainPrunedConfig
from pipelines.finetune.optimizer_memory import kept_bytes
from pipelines.finetune.shape import ModelShape
from pipelines.finetune.trained import Trained
from sweeps.soup_spec import SparseSoupConfig
from sweeps.spec import ASHAConfig

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep


GIGABYTE = 1e9


def checkpoint_bytes(config: FineTuneConfig, shape: ModelShape) -> tuple[int, int]:
    """(weights, whole checkpoint) of a run: fp32 weights, and what its optimizer keeps.

    Without an adapter all weights are written, the frozen ones too; of a pruned model with an adapter both. The JSON beside
    them (reports with their items) is left out: some kilobytes.
    """
    trained = Trained.of(config, shape)
    whole = config.adapter == "none" or isinstance(config, RetrainPrunedConfig)
    weights = 4 * (trained.adapter + trained.frozen + (shape.parameters if whole else 0))
    return weights, weights + kept_bytes(config, shape, trained)


def footprint(loaded: LoadedSweep, *, checkpoint: int, weights: int, slots: int, model: int = 0) -> dict[str, Any]:
    """What lies on the disk at once at most, in bytes; `total` is None where the number of trials is not known.

    With asha every run that waits at a rung holds its newest checkpoint until the search ends, whatever `keep` says, and
    those past the first rung an older one while there is room. Without it a run has a checkpoint when it ends: the
    protected ones stay, the others of `keep.best` while there is room. An adapter soup's rank is the sum of its
    ingredients' ranks; while a soup is made, one mixture lies beside the best. A running run writes one while another lies there
    that it keeps between milestones.

    Args:
        loaded: the sweep.
        checkpoint: bytes of the largest run's.
        weights: bytes of its weights alone.
        slots: runs at once.
        model: bytes of all weights, of which a sparse soup writes: the pruned model, the retrainings of a phase, a mixture,
            and the average of every phase.
    """
    firm, spare = _held(loaded)
    limit = loaded.spec.keep.disk_gb
    held = None if firm is None else firm * checkpoint
    if held is not None and limit is None:
        held += spare * checkpoint
    elif held is not None and limit is not None:
        held += min(spare * checkpoint, max(0, int(limit * GIGABYTE) - held))
    spec = loaded.spec
    ingredients = 0 if spec.soup is None else (spec.soup.top if _adapted(loaded) else 1)
    extra = {
        "writing": (1 if spec.checkpoint_seconds is None else 2) * slots * checkpoint,
        "final": 2 * len(spec.seeds.test) * checkpoint,
        "soup": 2 * ingredients * weights,
    }
    if isinstance(spec.soup, SparseSoupConfig):
        each = checkpoint + (model if _adapted(loaded) else 0)
        extra["soup"] = spec.soup.retrain.count * each + (spec.soup.phases + 2) * model
    total = None if held is None else held + sum(extra.values())
    return {"checkpoint": checkpoint, "checkpoints": firm, "spare": spare, "held": held, **extra, "total": total}


def _held(loaded: LoadedSweep) -> tuple[int | None, int]:
    """Checkpoints that stay whatever the disk says (None: unknown), and those that stay while there is room."""
    spec, rule = loaded.spec, loaded.spec.early_terminate
    own = len(spec.seeds.tune) if spec.named_baseline else 0
    runs = None if loaded.trials is None else loaded.trials * len(spec.seeds.tune) + own
    soup = max(len(spec.seeds.tune), 1 if spec.soup is None else spec.soup.top)
    if isinstance(rule, ASHAConfig) and len(loaded.milestones) > 1:
        if runs is None:
            return None, 0
        return runs, min(runs, max(1, runs // rule.eta, loaded.finalists))
    firm, best = soup + own, max(spec.keep.best or soup, 1) + own
    if runs is not None:
        firm, best = min(runs, firm), min(runs, best)
    return firm, max(0, best - firm)


def _adapted(loaded: LoadedSweep) -> bool:
    config = loaded.spec.pipeline
    masked = isinstance(config, RetrainPrunedConfig)
    return isinstance(config, FineTuneConfig) and config.adapter != "none" and not masked


def complaints(loaded: LoadedSweep, need: Mapping[str, Any], free: int | None) -> list[str]:
    """What the disk or `keep.disk_gb` is too small for."""
    found = []
    limit = loaded.spec.keep.disk_gb
    firm = None if need["checkpoints"] is None else need["checkpoints"] * need["checkpoint"]
    if limit is not None and firm is not None and firm > limit * GIGABYTE:
        found.append(
            f"keep.disk_gb is {limit:g}, but the checkpoints that stay in any case come to about {gigabytes(firm)} "
            f"({need['checkpoints']} of {gigabytes(need['checkpoint'])}); fewer trials, or lower soup.top or finalists"
        )
    if free is not None and need["total"] is not None and need["total"] > free:
        found.append(
            f"disk: about {gigabytes(need['total'])} of checkpoints, but {gigabytes(free)} are free under "
            f"{loaded.paths.root.parent}; give another storage, or ask for fewer trials or smaller adapters"
        )
    return found


def free_bytes(path: Path) -> int | None:
    """Free space where a folder is or will be; None where that can't be read."""
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def gigabytes(size: float) -> str:
    """Bytes for people, decimal: `1.5 GB`, small ones in MB."""
    return f"{size / 1e9:.1f} GB" if size >= 999.5e6 else f"{size / 1e6:.0f} MB"
