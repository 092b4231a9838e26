"""A W&B sweep configuration as a sweep of fine-tunes, or of a pipeline of the user's own.

A W&B sweep names a program and knows nothing of models and data, so the user says those. Its words for ranges are mostly
ours (https://docs.wandb.ai/models/sweeps/sweep-config-keys).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from evaluators.config import METRICS
from pipelines.stage import UserError
from sweeps.convert.base import Addition, Book, Conversion, Request, near, says, sweep_name
from sweeps.convert.fits import misfit
from sweeps.convert.wandb_ranges import Ranged, ranged
from sweeps.foreign import NOT_HERE, PIPELINE_NAMES
from sweeps.starter.sft import splits_of

TRIALS = 20
ITERATIONS = 27
"""Resource of a run of a pipeline of one's own where nothing says it."""
_METHODS = {"random": "random", "grid": "grid", "bayes": "gp"}
_OWN_PROGRAM = "the program's own setting; stockpot's fine-tunes have none like it"
_ABOUT = {
    "program": "stockpot trains itself; a program of your own: --import-path module:Class",
    "command": "stockpot trains itself; a program of your own: --import-path module:Class",
    "description": "write it as a comment",
    "project": "sweeps are told apart by name",
    "entity": "sweeps are told apart by name",
    "controller": "the sweep's own driver decides",
    "parameters": _OWN_PROGRAM,
    "early_terminate": "asha takes min, eta and finalists",
}


def convert(request: Request) -> Conversion:
    """The sweep file's content.

    Raises:
        UserError: if neither model and data nor a pipeline of one's own are given, or the file has no parameters.
    """
    sweep = request.config.data
    if not isinstance(sweep.get("parameters"), Mapping):
        raise UserError(f"{request.config.name}: has no parameters to search")
    if request.sweep is not None:
        raise UserError("--sweep goes with an Axolotl configuration; a W&B sweep is one file")
    book = Book(request.config)
    added: list[Addition] = []
    own = request.import_path is not None
    pipeline = _own(request) if own else _fine_tune(request, added)
    parameters: dict[str, Any] = {}
    for key, place, domain in _flat(sweep["parameters"], "parameters"):
        _parameter(book, key, place, domain, own, pipeline, parameters)
    if own:
        _total(sweep, request, pipeline, added)
    elif not {"num_epochs", "max_steps"} & {*pipeline, *parameters}:
        pipeline["num_epochs"] = 1
        added.append(Addition("num_epochs: 1", "the length of a run, which W&B leaves to the program"))
    data: dict[str, Any] = {"name": _name(book, sweep, request), "pipeline": pipeline}
    if parameters:
        data["parameters"] = parameters
    data["method"] = _method(book, sweep, parameters, added)
    data["metric"] = _metric(book, sweep, own, pipeline, added)
    _budget(book, sweep, data, parameters, added)
    if stopper := _stopper(book, sweep, pipeline, own):
        data["early_terminate"] = stopper
    entries = book.close(lambda leaf, value: _ABOUT.get(re.split(r"[.[]", leaf)[0], "stockpot has nothing like it"))
    advice = ["write the class: docs/guides/own-pipeline.md"] if own else []
    return Conversion(data, entries, tuple(added), tuple(advice))


def _own(request: Request) -> dict[str, Any]:
    return {"type": "custom", "import_path": request.import_path}


def _fine_tune(request: Request, added: list[Addition]) -> dict[str, Any]:
    if request.base_model is None or request.data is None:
        raise UserError(
            f"{request.config.name}: a W&B sweep names a program, not what is trained: give --base-model M and --data FILE for a "
            "fine-tune, or --import-path module:Class for a pipeline of your own"
        )
    model = near(request.base_model, request.output)
    splits, found = splits_of(request.data, request.type, request.fields, request.output.parent, ("tune", "test"))
    added += [
        Addition(says("base_model", model), "--base-model"),
        *(Addition("datasets", line) for line in found if not line.startswith("splits")),
    ]
    return {"type": "sft", "base_model": model, "datasets": splits}


def _flat(parameters: Mapping[str, Any], place: str, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Dotted name, place in the file and domain of every parameter; W&B nests by a further `parameters`."""
    for key, domain in parameters.items():
        inner = domain.get("parameters") if isinstance(domain, Mapping) else None
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{place}.{key}.parameters", f"{path}{key}.")
        else:
            yield f"{path}{key}", f"{place}.{key}", domain


def _parameter(
    book: Book, key: str, place: str, domain: Any, own: bool, pipeline: dict[str, Any], parameters: dict[str, Any]
) -> None:
    """One parameter: into the space, or into the pipeline where it has one value."""
    found = ranged(domain) if isinstance(domain, Mapping) else Ranged(None, "a domain is a mapping")
    ours, note = (f"kwargs.{key}", "") if own else _sft_key(key)
    if found.domain is None or ours is None:
        book.left(place, found.why or note)
        return
    if ours in parameters or ours in pipeline:
        book.left(place, f"sets {ours} again")
        return
    values, lost = _fitting(ours, found.values, own)
    if values == []:
        book.left(place, lost)
        return
    what = found.domain if values is None else {"value": values[0]} if len(values) == 1 else {"values": values}
    if set(what) == {"value"} and own:
        pipeline.setdefault("kwargs", {})
        _at(pipeline["kwargs"], key.split("."), what["value"])
    elif set(what) == {"value"}:
        pipeline[ours] = what["value"]
    else:
        parameters[ours] = what["values"] if set(what) == {"values"} else what
    for leaf in [leaf for leaf in book.open(place) if leaf.rpartition(".")[2] in found.dropped]:
        book.left(leaf, found.dropped[leaf.rpartition(".")[2]])
    says_it = says(ours if "value" in what else f"parameters.{ours}", what.get("value", parameters.get(ours)))
    if why := "; ".join(part for part in (note, found.changed, lost) if part):
        book.changed_rest(place, says_it, why)
    else:
        book.carried_rest(place, says_it, found.why)


def _fitting(key: str, values: list[Any] | None, own: bool) -> tuple[list[Any] | None, str]:
    """The values that may stand at a key, and why others may not; None for a range."""
    if values is None or own:
        return values, ""
    wrong = {index: message for index, value in enumerate(values) if (message := misfit(key, value))}
    return [value for index, value in enumerate(values) if index not in wrong], "; ".join(dict.fromkeys(wrong.values()))


def _sft_key(key: str) -> tuple[str | None, str]:
    """Our key for a program's, and what is not quite the same; no key, and why."""
    from pipelines.config import SFTConfig

    last = key.rpartition(".")[2]
    own_keys = SFTConfig.model_fields.keys() - {"type", "base_model_hash", "datasets", "seed_data"}
    if last in own_keys:
        return last, "" if last == key else f"nested as {key} there"
    if last in NOT_HERE:
        return None, NOT_HERE[last].removesuffix("; delete it")
    ours = PIPELINE_NAMES.get(last, ("", ""))[1]
    if ours in own_keys and last not in ("model", "r"):
        return ours, f"{last} of your program is taken for {ours}"
    return None, _OWN_PROGRAM


def _at(section: dict[str, Any], words: list[str], value: Any) -> None:
    for word in words[:-1]:
        section = section.setdefault(word, {})
    section[words[-1]] = value


def _total(sweep: Mapping[str, Any], request: Request, pipeline: dict[str, Any], added: list[Addition]) -> None:
    stop = sweep.get("early_terminate")
    iterations = stop.get("max_iter") if isinstance(stop, Mapping) else None
    if request.total is not None:
        pipeline["total"], why = request.total, "--total"
    elif isinstance(iterations, int):
        pipeline["total"], why = iterations, "early_terminate.max_iter"
    else:
        pipeline["total"], why = ITERATIONS, "the resource of a whole run, in your own unit; --total says another"
    added.append(Addition(says("total", pipeline["total"]), why))


def _name(book: Book, sweep: Mapping[str, Any], request: Request) -> str:
    given = sweep.get("name")
    name = sweep_name(f"{given}.yaml" if isinstance(given, str) else request.config.name)
    if given is not None:
        (book.carried if name == given else book.changed)(
            "name", says("name", name), "" if name == given else "letters"
        )
    return name


def _method(book: Book, sweep: Mapping[str, Any], parameters: Mapping[str, Any], added: list[Addition]) -> str:
    given = sweep.get("method")
    method = _METHODS.get(str(given), "random")
    if given is None:
        added.append(Addition("method: random", "the file names none"))
    elif str(given) not in _METHODS:
        book.left("method", "random, grid or bayes")
    elif method == "grid" and any(isinstance(domain, Mapping) for domain in parameters.values()):
        method = "random"
        book.changed("method", "method: random", "a grid needs lists, and here are ranges")
    elif method == "gp":
        book.changed("method", "method: gp", "a Gaussian process as well, Optuna's; `tpe` is the other choice")
    else:
        book.carried("method", f"method: {method}")
    return method


def _metric(book: Book, sweep: Mapping[str, Any], own: bool, pipeline: dict[str, Any], added: list[Addition]) -> str:
    given = sweep.get("metric")
    name = str(given.get("name") or "loss") if isinstance(given, Mapping) else "loss"
    goal = given.get("goal") if isinstance(given, Mapping) else None
    if own:
        ours = re.sub(r"\W+", "_", name.rpartition("/")[2]).strip("_") or "loss"
        pipeline["metrics"] = {ours: goal if goal in ("minimize", "maximize") else "minimize"}
        book.carried_rest("metric.goal", says("metrics", pipeline["metrics"]))
    else:
        ours = _evaluator(name)
        if goal in ("minimize", "maximize") and METRICS[ours] != goal:
            book.changed_rest("metric.goal", None, f"{ours} knows its direction: {METRICS[ours]}")
        book.carried_rest("metric.goal", None, f"{ours} knows its direction")
    if "metric.name" not in book.leaves:
        added.append(Addition(says("metric", ours), "the file names none"))
    elif ours == name and own:
        book.carried("metric.name", says("metric", ours))
    elif own:
        book.changed("metric.name", says("metric", ours), "the name its scores must have here")
    else:
        why = "of held-out rows (tune), as Stockpot defines it; your program's own numbers may differ"
        book.changed("metric.name", says("metric", ours), why)
    if "metric.target" in book.leaves:
        book.left("metric.target", "a sweep does not stop at a target value; budget ends it")
    return ours


def _evaluator(name: str) -> str:
    """Our metric that is nearest to what a program calls one."""
    last = re.split(r"[/.]", name)[-1].lower()
    if last in METRICS:
        return last
    if last.endswith(("accuracy", "acc", "exact_match")):
        return "exact_match"
    return "perplexity" if last.endswith(("ppl", "perplexity")) else "loss"


def _budget(
    book: Book, sweep: Mapping[str, Any], data: dict[str, Any], parameters: Mapping[str, Any], added: list[Addition]
) -> None:
    runs = sweep.get("run_cap")
    if isinstance(runs, int) and not isinstance(runs, bool) and runs > 0:
        data["budget"] = {"trials": runs}
        book.carried("run_cap", says("budget", data["budget"]))
    elif data["method"] != "grid" and parameters:
        data["budget"] = {"trials": TRIALS}
        added.append(Addition(says("budget", data["budget"]), "W&B goes on until it is stopped"))


def _stopper(book: Book, sweep: Mapping[str, Any], pipeline: Mapping[str, Any], own: bool) -> dict[str, Any] | None:
    """`asha` for hyperband, where the length of a run is known and holds more than one rung."""
    given = sweep.get("early_terminate")
    if not isinstance(given, Mapping):
        return None
    total = pipeline.get("total" if own else "max_steps")
    if given.get("type") != "hyperband" or not isinstance(total, int):
        why = (
            "asha needs max_steps, the same for all trials"
            if given.get("type") == "hyperband"
            else "hyperband is the one it knows"
        )
        book.left("early_terminate", why)
        return None
    asked = given.get("eta")
    eta = asked if isinstance(asked, int) and asked >= 2 else 3
    first = given.get("min_iter")
    if not isinstance(first, int):
        whole, rungs = given.get("max_iter"), given.get("s")
        first = whole // eta**rungs if isinstance(whole, int) and isinstance(rungs, int) else total // eta**2
    first = max(1, first)
    if first >= total:
        book.left("early_terminate", f"its first rung, {first}, is not before the end of a run, {total}")
        return None
    ours = {"type": "asha", "min": first, "eta": eta}
    for leaf in book.open("early_terminate"):
        word = leaf.rpartition(".")[2]
        if word in ("strict", "s", "max_iter"):
            book.left(
                leaf,
                {
                    "strict": "asha promotes; it never stops a run at a rung's edge by chance",
                    "s": "the rungs follow from min and eta",
                    "max_iter": "the pipeline's total is the end",
                }[word],
            )
        elif word in ("type", "min_iter", "eta"):
            unit = "in the pipeline's resource" if own else "in optimizer steps, where W&B counts calls of log"
            book.changed(leaf, says("early_terminate", ours), f"by promotion, and {unit}")
    return ours
