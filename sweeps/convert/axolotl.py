"""An Axolotl configuration, with its `--sweep` file, as a sweep of fine-tunes.

Axolotl's sweep is a grid: a list a key, and under `_` mappings that go together; it runs them in a shuffled order, one
after another, without comparing them (src/axolotl/cli/utils/sweeps.py).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.stage import UserError
from sweeps.convert import axolotl_keys as keys
from sweeps.convert.axolotl_data import splits_of
from sweeps.convert.base import Addition, Book, Conversion, Request, near, says, sweep_name
from sweeps.convert.fits import default_of, misfit
from sweeps.convert.write import write
from sweeps.load import load_text
from sweeps.problems import SpecError


@dataclass(frozen=True)
class Outcome:
    """What a key with one value becomes.

    Attributes:
        kind: as of an `Entry`.
        sets: keys of the pipeline and their values.
        why: as of an `Entry`.
    """

    kind: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Whole:
    """What one key must know of the others.

    Attributes:
        config: the configuration.
        swept: keys of the sweep file.
    """

    config: Mapping[str, Any]
    swept: frozenset[str]

    def fixed(self, key: str) -> Any:
        """The one value that a key has in all trials, or None."""
        return None if key in self.swept else self.config.get(key)

    def given(self, key: str) -> bool:
        """Whether either file says a key."""
        return key in self.swept or self.config.get(key) is not None


def convert(request: Request) -> Conversion:
    """The sweep file's content.

    Raises:
        UserError: if the configuration asks for training that is not there, or has no data.
    """
    config = request.config.data
    sweep = request.sweep.data if request.sweep else {}
    whole = Whole(config, frozenset(_swept(sweep)))
    _refuse(whole)
    book = Book(request.config)
    pipeline: dict[str, Any] = {"type": "sft", "base_model": _base_model(request, book)}
    added = [Addition("metric: loss", "of the answers in tune; Axolotl compares nothing")]
    pipeline["datasets"] = splits_of(request, book, added)
    swept = Book(request.sweep) if request.sweep else None
    seeds = _seeds(book, swept)
    late = ["warmup_steps"] if whole.fixed("warmup_steps") and not whole.given("max_steps") else []
    for key in [key for key in config if book.open(key) and key not in late]:
        _enter(book, key, config[key], whole, pipeline)
    _defaults(whole, pipeline, added)
    data: dict[str, Any] = {"name": sweep_name(request.config.name), "pipeline": pipeline}
    if swept:
        parameters = _parameters(sweep, swept, whole, pipeline)
        if parameters:
            data |= {"parameters": parameters, "method": {"type": "grid", "shuffle": True}}
            added.append(Addition("method: {type: grid, shuffle: true}", "Axolotl tries all, in a shuffled order"))
    data |= {"metric": "loss", **({"seeds": {"tune": seeds}} if seeds else {})}
    for key in late:
        steps = _steps(data, request, whole)
        _enter(book, key, config[key], Whole({**config, "max_steps": steps}, whole.swept), pipeline)
    entries = (*book.close(_why), *(swept.close(_why) if swept else ()))
    added.append(Addition(says("name", data["name"]), "after the file; also the folder of the results"))
    advice = [] if "parameters" in data else ["one configuration, so one trial: add what to sweep under `parameters`"]
    if "test" not in pipeline["datasets"]:
        advice.append("without `test` (a file, or {fraction: 0.1}) no winner is judged on rows that chose nothing")
    return Conversion(data, entries, tuple(added), tuple(advice))


def _steps(data: Mapping[str, Any], request: Request, whole: Whole) -> int | None:
    """Steps of a run, where the rows lie here to be counted and all runs have the same number."""
    if whole.swept & {"num_epochs", "micro_batch_size", "gradient_accumulation_steps", "batch_size"}:
        return None
    try:
        return load_text(write(data, ()).encode(), request.output.parent).total
    except (SpecError, UserError):
        return None


def _swept(sweep: Mapping[str, Any]) -> Iterable[str]:
    for key, values in sweep.items():
        if key != "_":
            yield key
        elif isinstance(values, list):
            yield from (inner for one in values if isinstance(one, Mapping) for inner in one)


def _refuse(whole: Whole) -> None:
    for key, what in keys.UNSUPPORTED.items():
        if key in whole.swept or whole.config.get(key) not in (None, False):
            raise UserError(f"{key}: {whole.config.get(key)!s}: this version has no pipeline for {what}")


def _base_model(request: Request, book: Book) -> str:
    named = request.config.data.get("base_model")
    if request.base_model is not None:
        model = near(request.base_model, request.output)
        if named is not None:
            book.changed("base_model", says("base_model", model), "--base-model")
        return model
    if not isinstance(named, str):
        raise UserError(f"{request.config.name}: has no base_model; --base-model names one")
    model = near(named, request.output)
    book.carried("base_model", says("base_model", model))
    return model


def _seeds(book: Book, swept: Book | None) -> list[Any]:
    """Seeds of training: the configuration's own, or those that are swept."""
    for one in (swept, book):
        given = one.leaves.get("seed") if one else None
        seeds = given if isinstance(given, list) else [given]
        if one and all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
            why = (
                "each configuration is run with each" if len(seeds) > 1 else "of training; method.seed is the search's"
            )
            one.carried("seed", says("seeds.tune", seeds), why)
            if one is swept and "seed" in book.leaves:
                book.left("seed", "the sweep file says others")
            return seeds
    return []


def _enter(book: Book, key: str, value: Any, whole: Whole, pipeline: dict[str, Any]) -> None:
    """Translate a key, put it into the pipeline and enter it."""
    out = translate(key, value, whole)
    if key in whole.swept:
        pipeline |= {path: ours for path, ours in out.sets.items() if path not in pipeline}
        book.carried_rest(key, why="the sweep file's values take its place")
        return
    if clash := next((path for path in out.sets if path in pipeline and pipeline[path] != out.sets[path]), None):
        book.left(key, f"another key says {says(clash, pipeline[clash])}")
        return
    if out.kind == "left":
        book.left(key, out.why)
        return
    pipeline |= out.sets
    ours = ", ".join(says(*item) for item in out.sets.items()) or None
    (book.carried if out.kind == "carried" else book.changed)(key, ours, out.why)


def translate(key: str, value: Any, whole: Whole) -> Outcome:
    """What a key with one value becomes; a value that our types refuse is left out, with their reason."""
    special = _SPECIAL.get(key)
    if special:
        out = special(value, whole)
    elif key in keys.RENAMED or key in keys.SAME:
        out = Outcome("carried", {keys.RENAMED.get(key, key): _number(value)})
    elif key == "model_type" and str(value).endswith("ForCausalLM"):
        out = Outcome("carried", why="the model's own class is used")
    elif key in keys.SO_HERE and value in keys.SO_HERE[key][0]:
        out = Outcome("carried", why=keys.SO_HERE[key][1])
    elif value is False and _reason(key) is not None:
        out = Outcome("carried", why="off, as here")
    else:
        out = Outcome("left", why=_why(key, value))
    for path, ours in out.sets.items():
        if wrong := misfit(path, ours):
            return Outcome("left", why=wrong)
    return out


def _number(value: Any) -> Any:
    """A number that the file gives as text, as Axolotl reads it."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _reason(key: str) -> str | None:
    """Why a known key is left out."""
    if key in keys.LEFT:
        return keys.LEFT[key]
    return next((why for name, why in keys.LEFT.items() if "*" in name and fnmatch.fnmatchcase(key, name)), None)


def _why(leaf: str, value: Any) -> str:
    """Why a key is left out, known or not."""
    return _reason(leaf.partition(".")[0].partition("[")[0]) or "stockpot has nothing like it"


def _adapter(value: Any, whole: Whole) -> Outcome:
    if value == "qlora":
        return Outcome(
            "changed", {"adapter": "lora"}, "base weights are not quantised: they take about 4 times the memory"
        )
    if value in (None, "", False, "none"):
        return Outcome("carried", {"adapter": "none"})
    return Outcome(
        "carried" if value == "lora" else "left", {"adapter": value}, "" if value == "lora" else "lora or none"
    )


def _bf16(value: Any, whole: Whole) -> Outcome:
    if value is False:
        swept = whole.swept & {"bf16", "fp16", "bfloat16", "float16"}
        return Outcome("carried", {"precision": "fp32"} if swept else {}, "" if swept else "off, as here")
    why = {"auto": "always, where Axolotl asks the GPU; ", "full": ""}.get(str(value), "")
    return Outcome("changed", {"precision": "bf16"}, f"{why}autocast: base weights are held in fp32, twice the memory")


def _fp16(value: Any, whole: Whole) -> Outcome:
    if value is False:
        return _bf16(value, whole)
    return Outcome("changed", {"precision": "fp16"}, "autocast: base weights are held in fp32, twice the memory")


def _targets(value: Any, whole: Whole) -> Outcome:
    if whole.fixed("lora_target_linear") is True:
        return Outcome("carried", {"lora_target_modules": "all-linear"}, "lora_target_linear holds them all")
    if isinstance(value, str) and value != "all-linear":
        return Outcome("left", why="a regular expression over whole names; list the ends of names")
    return Outcome("carried", {"lora_target_modules": value})


def _all_linear(value: Any, whole: Whole) -> Outcome:
    if value:
        return Outcome("carried", {"lora_target_modules": "all-linear"})
    named = whole.config.get("lora_target_modules")
    if "lora_target_linear" in whole.swept and isinstance(named, list):
        return Outcome("carried", {"lora_target_modules": named})
    return Outcome("carried", why="off, as here")


def _optimizer(value: Any, whole: Whole) -> Outcome:
    if value in keys.ADAMW:
        return Outcome("carried", why="the optimizer is AdamW")
    if value in keys.SMALLER_ADAMW:
        return Outcome("changed", why="AdamW with 32-bit states: more memory, otherwise the same rule")
    return Outcome("left", why=keys.LEFT["optimizer"])


def _checkpointing(value: Any, whole: Whole) -> Outcome:
    kind = "carried" if isinstance(value, bool) else "changed"
    return Outcome(
        kind, {"gradient_checkpointing": bool(value)}, "" if kind == "carried" else "PyTorch's, without offloading"
    )


def _packing(value: Any, whole: Whole) -> Outcome:
    if value is True and not whole.given("max_steps"):
        return Outcome("left", why="packed runs are measured in steps here: give max_steps in place of num_epochs")
    return Outcome("carried", {"sample_packing": value})


def _epochs(value: Any, whole: Whole) -> Outcome:
    if whole.given("max_steps"):
        return Outcome("left", why="max_steps is given too; Axolotl stops at whichever comes first")
    return Outcome("carried", {"num_epochs": _number(value)})


def _warmup_steps(value: Any, whole: Whole) -> Outcome:
    steps = whole.fixed("max_steps")
    if whole.given("warmup_ratio"):
        return Outcome("left", why="warmup_ratio is given too")
    if not isinstance(steps, int) or not isinstance(value, int | float) or not 0 <= value <= steps or not steps:
        return Outcome(
            "left", why="warm-up is a share here, and only training knows the steps of these epochs: give warmup_ratio"
        )
    return Outcome("carried", {"warmup_ratio": round(value / steps, 6)}, f"{value} of {steps} steps")


def _batch_size(value: Any, whole: Whole) -> Outcome:
    if whole.given("gradient_accumulation_steps"):
        return Outcome("left", why="gradient_accumulation_steps is given too")
    micro = whole.fixed("micro_batch_size") or (None if "micro_batch_size" in whole.swept else 1)
    if not isinstance(value, int) or not isinstance(micro, int) or value < micro:
        return Outcome("left", why="give gradient_accumulation_steps: batch_size / micro_batch_size")
    why = f"{value} / {micro} rows, on one device"
    return Outcome("changed", {"gradient_accumulation_steps": max(1, value // micro)}, why)


def _unfrozen(value: Any, whole: Whole) -> Outcome:
    if whole.given("adapter"):
        return Outcome("left", why="an adapter trains its own weights; with adapter: none these are carried")
    return Outcome("carried", {"unfrozen_parameters": value})


def _model(value: Any, whole: Whole) -> Outcome:
    return Outcome("carried", {"base_model": value})


_SPECIAL = {
    "base_model": _model,
    "adapter": _adapter, "bf16": _bf16, "fp16": _fp16, "bfloat16": _bf16, "float16": _fp16,
    "lora_target_modules": _targets, "lora_target_linear": _all_linear, "optimizer": _optimizer,
    "gradient_checkpointing": _checkpointing, "sample_packing": _packing, "num_epochs": _epochs,
    "warmup_steps": _warmup_steps, "batch_size": _batch_size, "unfrozen_parameters": _unfrozen,
}  # fmt: skip
"""Keys that are more than a name."""


def _defaults(whole: Whole, pipeline: dict[str, Any], added: list[Addition]) -> None:
    """What Axolotl does without being told, said."""

    def add(key: str, value: Any, why: str) -> None:
        pipeline[key] = value
        added.append(Addition(says(key, value), why))

    if not whole.given("adapter"):
        add("adapter", "none", "the file names no adapter, so all weights are trained")
    if not any(whole.given(key) for key in ("bf16", "fp16", "bfloat16", "float16")):
        add("precision", "bf16", "Axolotl's default is bf16: auto")
    if not whole.given("num_epochs") and not whole.given("max_steps"):
        add("num_epochs", 1, "Axolotl's default")
    for key, value in keys.DEFAULTS.items():
        if not whole.given(key) and not (key == "warmup_ratio" and whole.given("warmup_steps")):
            add(key, value, "Axolotl's default")


def _parameters(sweep: Mapping[str, Any], book: Book, whole: Whole, pipeline: dict[str, Any]) -> dict[str, Any]:
    """The search space; what turns out to have one value goes into the pipeline."""
    parameters: dict[str, Any] = {}
    for key, values in sweep.items():
        if not book.open(key):
            continue
        if key == "_":
            pairs = [one for one in values if isinstance(one, Mapping)] if isinstance(values, list) else []
            _pairs(pairs, book, whole, pipeline, parameters)
        elif isinstance(values, list):
            _axis(key, values, book, whole, pipeline, parameters)
        else:
            book.left(key, "Axolotl sweeps lists; write [VALUE]")
    return parameters


def _axis(
    key: str, values: list[Any], book: Book, whole: Whole, pipeline: dict[str, Any], parameters: dict[str, Any]
) -> None:
    outs = [translate(key, value, whole) for value in values]
    kept = [out for out in outs if out.kind != "left"]
    if not kept or not any(out.sets for out in kept):
        same = all(out.kind == "carried" for out in outs)
        (book.carried(key, why=outs[0].why) if same else book.left(key, next(o.why for o in outs if o.kind == "left")))
        return
    rows = _distinct([_filled(out.sets, kept, pipeline) for out in kept])
    ours = _put(rows, key, pipeline, parameters)
    lost = [f"{value} is left out: {out.why}" for value, out in zip(values, outs, strict=True) if out.kind == "left"]
    notes = [*lost, *dict.fromkeys(out.why for out in kept if out.kind == "changed" and out.why)]
    if len(rows) < len(values) - len(lost):
        notes.append("values that mean the same here are tried once")
    changed = notes or any(out.kind == "changed" for out in kept)
    (book.changed if changed else book.carried)(key, ours, "; ".join(notes))


def _pairs(
    pairs: list[Mapping[str, Any]], book: Book, whole: Whole, pipeline: dict[str, Any], parameters: dict[str, Any]
) -> None:
    """`_`: mappings that go together."""
    outs = []
    for index, pair in enumerate(pairs):
        sets: dict[str, Any] = {}
        for key, value in pair.items():
            out = translate(key, value, whole)
            place = f"_[{index}].{key}"
            if out.kind == "left":
                book.left(place, out.why)
            else:
                sets |= out.sets
                ours = ", ".join(says(*item) for item in out.sets.items()) or None
                (book.carried if out.kind == "carried" else book.changed)(place, ours, out.why)
        outs.append(Outcome("carried", sets))
    rows = _distinct([_filled(out.sets, outs, pipeline) for out in outs])
    if any(rows):
        _put(rows, "paired", pipeline, parameters)


def _filled(sets: Mapping[str, Any], others: Iterable[Outcome], pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """What one value sets, with what the others set too, as it is without them."""
    paths = dict.fromkeys(path for out in others for path in out.sets)
    return {path: sets[path] if path in sets else pipeline.get(path, default_of(path)) for path in paths}


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for index, row in enumerate(rows) if row not in rows[:index]]


def _put(rows: list[dict[str, Any]], group: str, pipeline: dict[str, Any], parameters: dict[str, Any]) -> str:
    """Make rows part of the space (one row: of the pipeline), and say how the file says it."""
    for path in rows[0]:
        pipeline.pop(path, None)
    if len(rows) == 1:
        pipeline |= rows[0]
        return ", ".join(says(*item) for item in rows[0].items())
    if len(rows[0]) == 1:
        path = next(iter(rows[0]))
        parameters[path] = [row[path] for row in rows]
        return says(f"parameters.{path}", parameters[path])
    parameters.setdefault("together", {})[group] = rows
    return says(f"parameters.together.{group}", rows)
