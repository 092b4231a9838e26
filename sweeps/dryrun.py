"""What a sweep will ask of its machines: memory of a trial, disk of what `keep` holds, and what its splits can show.

Estimates from headers, sizes and the first rows; nothing is loaded, nothing is written, torch and Ray are not imported.

Example:
    >>> found = dry_run(loaded, machines=((Node(2), this_machine()),))
    >>> found["memory"]["largest"]["total"], found["warnings"]
    (2304573440, [])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.base import ClusterError, Node, place
from cluster.machine import Machine, this_machine
from pipelines.config import DistillConfig, DPOConfig, FineTuneConfig, asks_models, parse_pipeline
from pipelines.finetune.config import ADAPTER_KEYS
from pipelines.finetune.memory import MemoryEstimate, estimate
from pipelines.finetune.shape import ModelShape, ShapeUnknown, read_shape
from pipelines.finetune.trained import Trained
from pipelines.finetune.workload import workload
from sweeps.extremes import extremes
from sweeps.footprint import checkpoint_bytes, complaints, footprint, free_bytes, gigabytes
from sweeps.host_plan import plan_hosts
from sweeps.known_rows import Rows, known_rows
from sweeps.splitsizes import sizes
from sweeps.trial_words import words

if TYPE_CHECKING:
    from pipelines.splits import Splits
    from sweeps.load import LoadedSweep

RAY_BYTES = 600 * 2**20
"""An idle Ray node and the driver (457 and 143 MB unique to them, measured)."""
WORKER_BYTES = 70 * 2**20
"""What a Ray worker holds beside the pipeline (545 MB with Ray's worker, 475 without, measured)."""
_MATTERS = {
    "base_model", "keep_layers", "adapter", "lora_r", "lora_dropout", "lora_target_modules", "use_dora",
    "peft_init_lora_weights", "num_virtual_tokens", "load_in_8bit", "load_in_4bit", "unfrozen_parameters",
    "teacher", "loss.type", "hidden.type",
    "micro_batch_size", "gradient_accumulation_steps", "eval_batch_size", "sequence_len", "sample_packing",
    "group_by_length", "precision", "parallel", "gradient_checkpointing", "max_steps", "optimizer", "reference",
}  # fmt: skip
"""Keys of the pipeline that move a trial's memory."""


@dataclass
class DryRun:
    """A sweep, its data and the machines; `shapes` are read once."""

    loaded: LoadedSweep
    rows: Rows
    machines: Sequence[tuple[Node, Machine]]
    here: bool = True
    shapes: dict[str, ModelShape | ShapeUnknown] = field(default_factory=dict)

    def shape(self, source: str) -> ModelShape | None:
        """A base model's shape; None where it is unknown."""
        if source not in self.shapes:
            try:
                self.shapes[source] = read_shape(source)
            except ShapeUnknown as error:
                self.shapes[source] = error
        found = self.shapes[source]
        return None if isinstance(found, ShapeUnknown) else found

    def estimate(self, config: FineTuneConfig, device: str) -> MemoryEstimate | None:
        """Of one trial; None where its model is unknown."""
        shape = self.shape(config.starts_from)
        if shape is None:
            return None
        answers = [getattr(entry, "max_new_tokens", None) for entry in self.loaded.spec.evaluate]
        longest = max((answer for answer in answers if answer is not None), default=None)
        work = None
        if self.rows.train:
            work = workload(config, shape, self.rows.train, self.rows.tune, rows=self.rows.count, new_tokens=longest)
        teachers = [self.shape(name) for name in named_teachers(config)]
        if None in teachers:
            return None
        known = [one for one in teachers if one is not None]
        workers = self.loaded.spec.resources.together
        return estimate(config, shape, work, "gpu" if device == "gpu" else "cpu", known, workers)


def dry_run(
    loaded: LoadedSweep,
    machines: Sequence[tuple[Node, Machine]],
    splits: Splits | None = None,
    *,
    here: bool = True,
) -> dict[str, Any]:
    """The dry run as JSON: `memory`, `disk`, `splits` (each None for a pipeline of one's own) and `warnings`.

    Args:
        loaded: the sweep.
        machines: every node with its machine.
        splits: the rows, where they were read; else the first ones of train are, and numbers of rows are estimates.
        here: whether the one machine is this one, on which Ray is still to be started.
    """
    config = loaded.spec.pipeline
    if not isinstance(config, FineTuneConfig):
        return {"memory": None, "disk": None, "splits": None, "warnings": []}
    run = DryRun(loaded, known_rows(config, splits), machines, here)
    memory, warnings = _memory(run)
    disk, more = _disk(run, memory.get("at_once") or 1)
    return {
        "memory": memory,
        "disk": disk,
        "splits": sizes(loaded, config, splits),
        "warnings": [*warnings, *more],
    }


def warnings_here(loaded: LoadedSweep) -> list[str]:
    """What of a sweep, whose data were read, is not expected to fit this machine's memory or disk."""
    from pipelines.splits import load_splits

    config = loaded.spec.pipeline
    if not isinstance(config, FineTuneConfig):
        return []
    found: list[str] = dry_run(loaded, machines(None), load_splits(config.datasets, config.seed_data))["warnings"]
    return found


def machines(
    address: str | None, names: Sequence[str] = (), *, insecure: bool = False
) -> tuple[tuple[Node, Machine], ...]:
    """The nodes of a Ray cluster, or this machine.

    Args:
        address: the cluster's; None for this machine.
        names: environment variables that the cluster's nodes must have.
        insecure: also of one that lets everybody in.

    Raises:
        ClusterError: when the cluster can't be reached, or its nodes lack a variable or have versions that no sweep may begin with.
    """
    if address is None:
        found = this_machine()
        return ((Node(found.cpus, float(len(found.gpus))), found),)
    from cluster.local import connect

    cluster = connect(address, insecure=insecure)
    try:
        cluster.refuse_unset(names)
        cluster.differences()
        return cluster.machines()
    finally:
        cluster.close()


def named_teachers(config: FineTuneConfig) -> tuple[str, ...]:
    """The models of a distillation's teacher that are loaded for a run."""
    return config.teachers if isinstance(config, DistillConfig) and config.needs_teacher else ()


def _memory(run: DryRun) -> tuple[dict[str, Any], list[str]]:
    """The largest (and the smallest) trial, the machine, and what fits at once."""
    loaded = run.loaded
    try:
        wanted, nodes = loaded.spec.resources, [node for node, _ in run.machines]
        if asks_models(loaded.spec.pipeline):
            slots = plan_hosts(loaded.spec, nodes).placement
        else:
            most = loaded.spec.max_concurrent_trials
            slots = place(nodes, wanted.cpus, wanted.gpus_each, most, wanted.together)
    except ClusterError as error:
        return {"largest": None, "smallest": None, "reason": str(error), "machines": _told(run)}, [str(error)]
    device = "gpu" if slots.gpus else "cpu"
    found: dict[str, dict[str, Any] | None] = {}

    def needed(config: FineTuneConfig) -> float:
        made = run.estimate(config, device)
        return 0.0 if made is None else float(made.total)

    for name, parameters in zip(("largest", "smallest"), _extremes(run, needed), strict=True):
        config = _typed(loaded, parameters)
        made = None if config is None else run.estimate(config, device)
        found[name] = None if config is None or made is None else _record(config, made, parameters)
    counts = [_trained(run, parameters) for parameters in reversed(_extremes(run, lambda c: _numbers(run, c)))]
    found["trainable"] = None if None in counts else {"least": counts[0], "most": counts[1]}
    told: dict[str, Any] = {
        **found,
        "device": device,
        "machines": _told(run),
        "at_once": slots.slots,
        "workers": slots.workers,
    }
    unknown = [str(error) for error in run.shapes.values() if isinstance(error, ShapeUnknown)]
    told["reason"] = "; ".join(unknown) or None
    told["basis"] = run.rows.basis
    largest = found["largest"]
    told["fit"] = None if largest is None else _fit(run, largest["total"], slots.gpus)
    return told, _complaints(run, told)


def _numbers(run: DryRun, config: FineTuneConfig) -> float:
    """Trained parameters; 0 where the model is unknown."""
    shape = run.shape(config.base_model)
    return 0.0 if shape is None else float(Trained.of(config, shape).parameters)


def _trained(run: DryRun, parameters: Mapping[str, Any]) -> int | None:
    config = _typed(run.loaded, parameters)
    return (None if config is None else int(_numbers(run, config))) or None


def _disk(run: DryRun, slots: int) -> tuple[dict[str, Any] | None, list[str]]:
    """What the largest run's checkpoints need; None where its model is unknown."""

    def of(config: FineTuneConfig | None) -> tuple[int, int]:
        shape = None if config is None else run.shape(config.starts_from)
        return (0, 0) if config is None or shape is None else checkpoint_bytes(config, shape)

    largest, _ = _extremes(run, lambda config: of(config)[1])
    config = _typed(run.loaded, largest)
    weights, checkpoint = of(config)
    shape = None if config is None else run.shape(config.starts_from)
    if not checkpoint or shape is None:
        return None, []
    model = 4 * shape.parameters
    need = footprint(run.loaded, checkpoint=checkpoint, weights=weights, slots=slots, model=model)
    need["free"] = free_bytes(run.loaded.paths.root)
    return need, complaints(run.loaded, need, need["free"])


def _extremes(run: DryRun, cost: Callable[[FineTuneConfig], float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of the costliest and the cheapest configuration; each is asked about once."""
    known: dict[str, float] = {}

    def remembered(parameters: Mapping[str, Any]) -> float:
        key = repr(sorted((path, value) for path, value in parameters.items() if path in _MATTERS))
        if key not in known:
            config = _typed(run.loaded, parameters)
            known[key] = 0.0 if config is None else cost(config)
        return known[key]

    return extremes(run.loaded.space, remembered, lambda path: path in _MATTERS)


def _typed(loaded: LoadedSweep, parameters: Mapping[str, Any]) -> FineTuneConfig | None:
    config = parse_pipeline(loaded.resolve(parameters))
    return config if isinstance(config, FineTuneConfig) else None


def _record(config: FineTuneConfig, made: MemoryEstimate, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """An estimate as JSON; on a CPU Ray's part of the worker is added."""
    items = dict(made.items)
    if made.device == "cpu":
        items["process"] += WORKER_BYTES
    return {
        "total": sum(items.values()),
        "moment": made.moment,
        "items": items,
        "trainable": made.trainable,
        "parameters": {path: value for path, value in parameters.items() if path in _MATTERS},
        "config": {
            "adapter": config.adapter,
            "lora_r": config.lora_r if config.adapter in ADAPTER_KEYS["lora_r"] else None,
            "quantised": config.quantised,
            "micro_batch_size": config.micro_batch_size,
            "item": "pair" if isinstance(config, DPOConfig) else "row",
            "sequence_len": config.sequence_len,
            "longest": made.batch.length,
            "precision": config.precision,
        },
    }


def _told(run: DryRun) -> list[dict[str, Any]]:
    return [
        {"cpus": node.cpus, "memory": machine.memory, "free": machine.free, "gpus": list(machine.gpus)}
        for node, machine in run.machines
    ]


def _fit(run: DryRun, total: int, gpus: float) -> int | None:
    """Trials whose workers are of this size that the memory of all machines carries at once; None where one's is unknown."""
    fit = 0
    for node, machine in run.machines:
        if gpus:
            if len(machine.gpus) < int(node.gpus):
                return None
            shares = max(1, int(1 / gpus + 1e-6))
            fit += sum(min(shares, size // total) for size in machine.gpus[: int(node.gpus)])
        elif machine.free is None:
            return None
        else:
            fit += max(0, machine.free - (RAY_BYTES if run.here else 0)) // total
    return fit // run.loaded.spec.resources.together


def _complaints(run: DryRun, told: Mapping[str, Any]) -> list[str]:
    """What does not fit, with the numbers and the mend. An estimate only warns."""
    largest, fit, at_once = told["largest"], told["fit"], told["at_once"]
    if largest is None or fit is None or fit >= at_once:
        return []
    has = _capacity(run, told["device"])
    who = "a trial needs" if told["workers"] == 1 else f"each of a trial's {told['workers']} workers needs"
    needs = f"{who} about {gigabytes(largest['total'])} at its peak ({words(largest['config'])})"
    if fit:
        return [f"memory: {needs}, {at_once} run at once, but {has} carry {fit}; write max_concurrent_trials: {fit}"]
    mends = _mends(run, largest, told["device"])
    return [f"memory: {needs}, but {has}, so it can't be expected to fit; {mends}"]


def _capacity(run: DryRun, device: str) -> str:
    where = "this machine" if run.here else ("the node" if len(run.machines) == 1 else "the nodes")
    if device == "gpu":
        sizes = [size for _, machine in run.machines for size in machine.gpus]
        return f"the GPUs of {where} have {gigabytes(max(sizes))} each"
    free = [machine.free or 0 for _, machine in run.machines]
    whole = [machine.memory or 0 for _, machine in run.machines]
    ray = f", of which Ray takes {gigabytes(RAY_BYTES)}" if run.here else ""
    return f"{gigabytes(sum(free))} free of {gigabytes(sum(whole))} on {where}{ray}"


def _mends(run: DryRun, largest: Mapping[str, Any], device: str) -> str:
    """Single changes that would make it fit, gentlest first; where none does, the one that helps most."""
    config = _typed(run.loaded, {**_first(run), **largest["parameters"]})
    assert config is not None, "an estimate was made of it"
    micro, steps = config.micro_batch_size, config.gradient_accumulation_steps
    halved = [micro >> times for times in range(1, micro.bit_length())]
    changes: list[dict[str, Any]] = [
        *({"micro_batch_size": size, "gradient_accumulation_steps": micro * steps // size} for size in halved),
        {"eval_batch_size": 1},
        {"gradient_checkpointing": True},
        *([{"parallel": "fsdp"}] if run.loaded.spec.resources.together > 1 else []),
        {"precision": "bf16"},
        {"sequence_len": max(8, config.sequence_len // 2)},
        {"adapter": "lora", "unfrozen_parameters": None},
    ]
    told: list[tuple[int, str, bool]] = []
    for change in changes:
        made = run.estimate(config.model_copy(update=change), device)
        if made is None or made.total > 0.95 * largest["total"]:
            continue
        if told and told[-1][2] and "micro_batch_size" in change:
            continue  # a larger micro batch fits already
        text = ", ".join(f"{key}: {str(value).lower()}" for key, value in change.items() if value is not None)
        fits = bool(_fit(run, made.total, 1.0 if device == "gpu" else 0.0))
        told.append((made.total, f"{text} needs about {gigabytes(made.total)}", fits))
    fitting = [text for _, text, fits in told if fits]
    if fitting:
        return "; ".join(fitting[:3])
    return f"{min(told)[1]}, which is not enough either" if told else "take a smaller model"


def _first(run: DryRun) -> dict[str, Any]:
    """The parameters of some configuration."""
    return extremes(run.loaded.space, lambda parameters: 0.0, lambda path: False)[0]
