"""What `check` prints of the dry run: memory, disk, what the splits can show, duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sweeps.footprint import gigabytes
from sweeps.trial_words import words

MOMENTS = {
    "backward": "as the backward pass begins",
    "teacher": "while the teacher answers",
    "gradients": "when the backward pass ends",
    "update": "in the optimizer's step",
    "evaluation": "in the evaluation",
    "generation": "while answers are generated",
}


def lines(found: Mapping[str, Any], *, here: bool) -> Iterator[str]:
    """The dry run (`sweeps.dryrun.dry_run`) for people, a line each, without its warnings.

    Args:
        found: the dry run.
        here: whether the machine is this one.
    """
    if found["memory"] is not None:
        yield from _memory(found["memory"], here)
    if found["disk"] is not None:
        yield _disk(found["disk"])
    if found.get("corpus"):
        yield _corpus(found["corpus"], found["gold"])
    if found["splits"]:
        yield from _splits(found["splits"], "row" if found.get("corpus") is None else "question")
    if found.get("duplicates"):
        yield from _duplicates(found["duplicates"])
    yield from _lengths(found.get("longer_chosen") or {})


def _memory(memory: Mapping[str, Any], here: bool) -> Iterator[str]:
    largest, smallest = memory["largest"], memory["smallest"]
    if largest is None:
        yield f"  memory   unknown: {memory['reason']}"
        return
    where = "the device" if memory["device"] == "gpu" else "the process"
    whose = "a trial's peak" if memory["workers"] == 1 else f"the peak of each of a trial's {memory['workers']} workers"
    yield (
        f"  memory   about {gigabytes(largest['total'])} at {whose}, {MOMENTS[largest['moment']]} "
        f"({where}; {words(largest['config'])}; lengths by {memory['basis']})"
    )
    items = sorted(largest["items"].items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {gigabytes(size)}" for name, size in items if size >= 5e6)
    yield f"           = {shown}"
    if smallest is not None and largest["total"] > 1.5 * smallest["total"]:
        yield f"           the smallest trial about {gigabytes(smallest['total'])} ({words(smallest['config'])})"
    yield f"           {_machine(memory, here)}"
    if memory["trainable"] is not None:
        least, most = memory["trainable"]["least"], memory["trainable"]["most"]
        yield f"  trained  {f'{least:,}' if least == most else f'{least:,} to {most:,}'} parameters a trial"


def _machine(memory: Mapping[str, Any], here: bool) -> str:
    machines = memory["machines"]
    who = "this machine" if here else f"{len(machines)} node{'s' * (len(machines) > 1)}"
    if memory["device"] == "gpu":
        sizes = [size for machine in machines for size in machine["gpus"]]
        has = f"{len(sizes)} GPU{'s' * (len(sizes) != 1)} of {gigabytes(min(sizes))} or more" if sizes else "GPUs"
    else:
        free, whole = (sum(machine[key] or 0 for machine in machines) for key in ("free", "memory"))
        has = f"{gigabytes(free)} free of {gigabytes(whole)}" if whole else "memory that can't be read"
    fit = "how many fit at once is unknown" if memory["fit"] is None else f"{memory['fit']} fit at once"
    return f"{who}: {has}, {fit}, {memory['at_once']} will run at once"


def _disk(disk: Mapping[str, Any]) -> str:
    each = f"{gigabytes(disk['checkpoint'])} a checkpoint"
    free = "" if disk["free"] is None else f"; {gigabytes(disk['free'])} are free"
    if disk["total"] is None:
        return f"  disk     {each}; how many there will be is not known before the hours are up{free}"
    parts = [f"{disk['checkpoints']} that stay{'s' * (disk['checkpoints'] == 1)}"]
    parts += [f"up to {disk['spare']} more while there is room"] if disk["spare"] else []
    parts += [name for key, name in (("final", "the final step's"), ("soup", "the soup")) if disk[key]]
    return f"  disk     at most about {gigabytes(disk['total'])}: {each}, {', '.join(parts)}{free}"


def _corpus(corpus: Mapping[str, int], gold: Mapping[str, int]) -> str:
    counts = ", ".join(f"{gold[kind]:,} with {name}" for kind, name in _GOLD.items() if gold[kind])
    return (
        f"  corpus   {corpus['documents']:,} document{'s' * (corpus['documents'] != 1)}, {corpus['characters']:,} characters; "
        f"questions: {counts or 'none has any gold'}"
    )


_GOLD = {"spans": "gold spans", "documents": "gold documents", "answers": "a reference answer"}


def _splits(splits: Mapping[str, Mapping[str, Any]], unit: str) -> Iterator[str]:
    """Rows, and what a split can show; the last line says what that means."""
    told = False
    for name, split in splits.items():
        count = split["rows"]
        if count is None:
            yield f"  {name:8} rows unknown without --data"
            continue
        rows = f"{'' if split['exact'] else 'about '}{count:,} {unit}{'s' * (count != 1)}"
        groups = split["groups"]
        rows += f" of {groups:,} {'prompts or ' * (unit == 'row')}groups" if split["exact"] and groups != count else ""
        if split.get("share") is None:
            yield f"  {name:8} {rows}"
            continue
        told = True
        of = "loss" if unit == "row" else "a score"
        sds = "" if split["sds"] is None else f", or {split['sds']:.2f} SD of {of}"
        yield f"  {name:8} {rows}: shows a difference of {100 * split['share']:.0f} points of accuracy{sds}"
    if told:
        yield (
            "           (the smallest that a paired test at 5 % finds 4 times in 5: of accuracy in the worst case, two "
            f"{'models' if unit == 'row' else 'trials'}"
        )
        yield f"           that disagree on half of the {unit}s; SD is that of the {unit}s' differences, which only runs can show)"


def _duplicates(duplicates: Mapping[str, Any]) -> Iterator[str]:
    near, repeated = duplicates["near"], duplicates["repeated"]
    yield (
        f"  doubles  {repeated:,} exact repeats within train, {near:,} near-duplicate pairs across splits "
        f"({duplicates['compared']:,} rows compared)"
    )


def _lengths(shares: Mapping[str, float]) -> Iterator[str]:
    """What preferring the longer answer would get right."""
    if shares:
        said = ", ".join(f"{100 * share:.0f} % of {name}" for name, share in shares.items())
        yield f"  lengths  the chosen answer is the longer one in {said}: so much length alone gets right"
