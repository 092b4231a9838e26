"""An Axolotl configuration, with its `--sweep` file, as a sweep of fine-tunes.

Axolotl's sweep is a grid: a list a key, and under `_` mappings that go together; it runs them in a shuffled order, one
after another, without comparing them (src/axolotl/cli/utils/sweeps.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pipelines.stage import UserError
from sweeps.convert import axolotl_keys as keys
from sweeps.convert.axolotl_data import datasets_of
from sweeps.convert.axolotl_grid import parameters_of
from sweeps.convert.axolotl_training import Whole, translate, why_left
from sweeps.convert.base import Addition, Book, Conversion, Request, near, says, sweep_name
from sweeps.convert.write import write
from sweeps.load import load_text
from sweeps.problems import SpecError


def convert(request: Request) -> Conversion:
    """The sweep file's content.

    Raises:
        UserError: if the configuration asks for training that is not there, or has no data.
    """
    config = request.config.data
    sweep = request.sweep.data if request.sweep else {}
    whole = Whole(config, frozenset(_swept(sweep)), request.output)
    _refuse(whole)
    book = Book(request.config)
    pipeline: dict[str, Any] = {"type": "sft", "base_model": _base_model(request, book)}
    added = [Addition("metric: loss", "of the answers in tune; Axolotl compares nothing")]
    pipeline["datasets"] = datasets_of(request, book, added)
    swept = Book(request.sweep) if request.sweep else None
    seeds = _seeds(book, swept)
    late = ["warmup_steps"] if whole.fixed("warmup_steps") and not whole.given("max_steps") else []
    for key in [key for key in config if book.open(key) and key not in late]:
        _enter(book, key, config[key], whole, pipeline)
    _defaults(whole, pipeline, added)
    data: dict[str, Any] = {"name": sweep_name(request.config.name), "pipeline": pipeline}
    if swept:
        parameters = parameters_of(sweep, swept, whole, pipeline)
        if parameters:
            data |= {"parameters": parameters, "method": {"type": "grid", "shuffle": True}}
            added.append(Addition("method: {type: grid, shuffle: true}", "Axolotl tries all, in a shuffled order"))
    data |= {"metric": "loss", **({"seeds": {"tune": seeds}} if seeds else {})}
    for key in late:
        steps = _steps(data, request, whole)
        _enter(book, key, config[key], replace(whole, config={**config, "max_steps": steps}), pipeline)
    entries = (*book.close(why_left), *(swept.close(why_left) if swept else ()))
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
            raise UserError(f"{key}: {whole.config.get(key)!s}: convert does not translate {what}")


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
        book.carried_rest(key, why="where the sweep file says another, that is used")
        return
    if clash := next((path for path in out.sets if path in pipeline and pipeline[path] != out.sets[path]), None):
        book.left(key, f"another key says {says(clash, pipeline[clash])}")
        return
    pipeline |= out.sets
    book.enter(key, out.kind, out.ours, out.why)


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
