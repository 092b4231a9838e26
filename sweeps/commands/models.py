"""`evaluate`: score any model on any rows, the way sweeps do, in this process. `prune`: zeros for a model's weights."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sweeps.commands.places import UsageError, find_sweep
from sweeps.local import SWEEP, absolute_model
from sweeps.paths import SweepPaths, storage_folder
from sweeps.problems import unknown
from sweeps.trial import finite

if TYPE_CHECKING:
    from evaluators.base import Example, Score, Split
    from evaluators.config import EvaluatorConfig
    from pipelines.config import DataFile
    from pipelines.stage import EvaluationJob, ModelSource
    from sweeps.load import LoadedSweep

SPLITS = ("tune", "select", "test", "train")


@dataclass(frozen=True)
class Data:
    """What `--on` means: rows of a file, or a split of a sweep."""

    split: Split
    config: Mapping[str, Any]
    rows: tuple[Example, ...] | None = None
    loaded: LoadedSweep | None = None

    @property
    def paths(self) -> SweepPaths | None:
        """Of the sweep whose split it is."""
        return self.loaded.paths if self.loaded is not None else None


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a model on a file or on a sweep's split; an opening of a sweep's `test` is recorded in its ledger."""
    data = _data(arguments)
    entries = _entries(arguments, data.loaded)
    source = _model(arguments)
    scores, status = _score(arguments, data, entries, source)
    if not scores:
        raise UsageError(f"--with {arguments.evaluators}: nothing of it is scored on {data.split}")
    if arguments.json:
        model = {"base_model": source.base_model, "adapter": source.adapter, "hash": source.content_hash}
        record = {"model": model, "on": arguments.on, "scores": [score.record() for score in scores]}
        print(json.dumps(record, indent=2, allow_nan=False))
        return status
    print(f"{arguments.model} on {arguments.on}")
    width = max(len(score.name) for score in scores)
    for score in scores:
        print(f"  {score.name:<{width}}  {_number(score)}, n={score.n}{_unscored(score)}")
    return status


def _number(score: Score) -> str:
    error = f" ± {score.se:.2g}" if finite(score.se) else ""
    return f"{score.value:.4g}{error}"


def _unscored(score: Score) -> str:
    return f", {score.unscored} could not be scored" if score.unscored else ""


def _score(
    arguments: argparse.Namespace, data: Data, entries: Sequence[Mapping[str, Any]], source: ModelSource
) -> tuple[tuple[Score, ...], int]:
    """Run the pipeline's own `evaluate` here; with a sweep's `test`, as the one driver of that sweep.

    Returns:
        The scores, and the exit status: 1 where the opening of `test` could not be sent to the sweep's storage.
    """
    from pipelines.stage import EvaluationJob, Services
    from sweeps.paths import cache_dir
    from sweeps.secret_values import read_secret

    config = dict(data.config)
    judge = None if data.loaded is None else data.loaded.judge
    job = EvaluationJob(config, source, data.split, tuple(entries), rows=data.rows, judge=judge)
    job = replace(job, services=Services(secret=read_secret, cache=str(cache_dir())))
    if data.paths is None or data.split != "test":
        return _run(job, data), 0
    from sweeps.driving import driving
    from sweeps.final import open_test
    from sweeps.ledger import Ledger

    with driving(data.paths, lambda text: print(text, file=sys.stderr)) as drive:
        ledger = Ledger.open(data.paths.root)
        try:
            open_test(ledger, "evaluate", [arguments.model], [f"test/{entry['type']}" for entry in entries])
            scores = _run(job, data)
        finally:
            ledger.close()
    return scores, drive.status(0)


def _run(job: EvaluationJob, data: Data) -> tuple[Score, ...]:
    from pipelines import build_pipeline
    from pipelines.config import FineTuneConfig, parse_pipeline
    from pipelines.custom import add_folder
    from pipelines.stage import Devices

    if data.loaded is not None:
        add_folder(data.loaded.folder)
    pipeline = build_pipeline(job.config)
    if not callable(getattr(pipeline, "evaluate", None)):
        raise UsageError(f"the pipeline {job.config.get('import_path', job.config['type'])} has no evaluate(job)")
    gpus = 0.0
    if isinstance(parse_pipeline(job.config), FineTuneConfig):
        import torch

        gpus = float(torch.cuda.is_available())
    return pipeline.evaluate(replace(job, devices=Devices(float(os.cpu_count() or 1), gpus)))


def prune(arguments: argparse.Namespace) -> int:
    """Write a pruned model, and print its mask's hash and the share of zeros."""
    from pipelines.finetune.prune import prune as make
    from sweeps.paths import cache_dir

    out = Path(arguments.output).expanduser().resolve()
    if out.exists() and not arguments.force:
        raise UsageError(f"{arguments.output} exists; give another folder, or --force to replace it")
    if (arguments.method == "wanda") != (arguments.on is not None):
        said = "weighs weights by their inputs; give it rows" if arguments.on is None else "reads no rows; delete it"
        raise UsageError(f"--on: {arguments.method} {said}")
    settings = {"method": arguments.method, "scope": arguments.scope, "rows": arguments.limit}
    payload = {
        "model": named(arguments.model, arguments.storage)[0],
        "out": str(out),
        "settings": {**settings, "sequence_len": arguments.sequence_len},
        "sparsity": arguments.sparsity,
        "cache": str(cache_dir()),
        "data": None if arguments.on is None else data_file(arguments).model_dump(mode="json"),
    }
    made = make(payload)
    if arguments.json:
        print(json.dumps({"folder": str(out), **made}, indent=2, allow_nan=False))
        return 0
    print(f"{arguments.model} pruned by {arguments.method}: {made['zeros']:,} of {made['total']:,} weights are zero")
    print(f"  sparsity  {made['sparsity']:.4f} (before: {made['before']:.4f})")
    print(f"  mask      {made['hash']}")
    print(f"  folder    {arguments.output}")
    return 0


def named(model: str, storage: str) -> tuple[str, str | None]:
    """What MODEL names, absolute where it is a path, and its hash where that is known.

    Args:
        model: hub id, folder, GGUF file, `package://...` or `sweep://...`.
        storage: where the sweeps lie.

    Raises:
        UsageError: for a `sweep://` name that leads nowhere.
    """
    from sweeps.sources import SourceError, resolve_source

    text, content_hash = model, None
    if text.startswith(SWEEP):
        try:
            found = resolve_source(text, storage_folder(storage), Path.cwd())
        except SourceError as error:
            raise UsageError(str(error)) from error
        if found.note:
            print(f"note: {found.note}", file=sys.stderr)
        text, content_hash = found.path, found.hash
    return absolute_model(text, Path.cwd()), content_hash


def _model(arguments: argparse.Namespace) -> ModelSource:
    """What MODEL means: an adapter folder on its base, or a whole model.

    Raises:
        UsageError: for a `sweep://` name that leads nowhere, or an adapter without a base.
    """
    from pipelines.stage import ModelSource

    text, content_hash = named(arguments.model, arguments.storage)
    adapter = Path(text) / "adapter_config.json"
    if not adapter.is_file():
        if arguments.base is not None:
            raise UsageError(f"--base is for adapter folders, and {arguments.model} has no adapter_config.json")
        return ModelSource(text, content_hash=content_hash)
    base = arguments.base or json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise UsageError(f"{adapter} names no base model; say it with --base MODEL")
    return ModelSource(absolute_model(base, Path.cwd()), adapter=text, content_hash=content_hash)


def _data(arguments: argparse.Namespace) -> Data:
    if arguments.on.startswith(SWEEP):
        return _sweep_split(arguments)
    from pipelines.config import SFTConfig
    from pipelines.splits import read_rows

    file = data_file(arguments)
    settings = {"sequence_len": arguments.sequence_len, "eval_batch_size": arguments.batch_size}
    given = {name: value for name, value in settings.items() if value is not None}
    needed = {"base_model": arguments.model, "datasets": {"train": file}, "max_steps": 1}
    config = SFTConfig.model_validate({**needed, **given})
    return Data("test", config.model_dump(mode="json"), rows=tuple(read_rows(file)))


def _sweep_split(arguments: argparse.Namespace) -> Data:
    """A split of a sweep, with that sweep's settings.

    Raises:
        UsageError: for another split than the four.
    """
    from sweeps.load import load_resolved

    name, _, split = arguments.on.removeprefix(SWEEP).rstrip("/").rpartition("/")
    if not name or split not in SPLITS:
        raise UsageError(f"--on {arguments.on}: write sweep://NAME/ and one of {', '.join(SPLITS)}")
    loaded = load_resolved(find_sweep(name, arguments.storage).resolved_spec)
    config = loaded.spec.pipeline.model_dump(mode="json")
    for option, key in (("sequence_len", "sequence_len"), ("batch_size", "eval_batch_size")):
        if getattr(arguments, option) is not None:
            config[key] = getattr(arguments, option)
    return Data(split, config, loaded=loaded)


def data_file(arguments: argparse.Namespace, option: str = "--on") -> DataFile:
    """The file that an option names, with the type of its rows as given or as the first row shows.

    Args:
        arguments: with the file as `on`.
        option: what messages call it.

    Raises:
        UsageError: when there is no such file or the type can't be told.
    """
    from pipelines.config import DataFile

    path = Path(arguments.on).expanduser().resolve()
    if not path.is_file():
        raise UsageError(
            f"{option} {arguments.on}: there is no such file; a JSONL file or sweep://NAME/SPLIT is wanted"
        )
    types = get_args(DataFile.model_fields["type"].annotation)
    fields = ("prompt", "completion", "messages", "text")
    named = {f"field_{f}": v for f in fields if (v := getattr(arguments, f"field_{f}")) is not None}
    kind = arguments.type or _seen_type(path, named, option)
    if kind not in types:
        raise UsageError(f"--type: {unknown(kind, types)}")
    return DataFile.model_validate({"path": str(path), "type": kind, "limit": arguments.limit, **named})


def _seen_type(path: Path, named: Mapping[str, str], option: str) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    keys = set(row) if isinstance(row, dict) else set()
    if named.get("field_messages", "messages") in keys:
        return "chat"
    if {named.get("field_prompt", "prompt"), named.get("field_completion", "completion")} <= keys:
        return "prompt_completion"
    if named.get("field_text", "text") in keys:
        return "text"
    raise UsageError(
        f"{option} {path}: its first row has the keys {', '.join(sorted(keys)) or 'none'}; "
        "say which is which: --type prompt_completion --field-prompt KEY --field-completion KEY"
    )


def _entries(arguments: argparse.Namespace, loaded: LoadedSweep | None) -> list[dict[str, Any]]:
    """`evaluate` entries of the names given, with the sweep's own settings where it has them.

    Raises:
        UsageError: for an unknown evaluator, or a setting that none of those named takes.
    """
    from evaluators import EVALUATORS, parse_evaluator
    from evaluators.config import EVALUATOR_CONFIGS, name_of
    from sweeps.metrics import subjects

    asks = {name_of(config): config.example for config in EVALUATOR_CONFIGS if config.example}
    names = [name.strip() for name in arguments.evaluators.split(",") if name.strip()]
    settings = {"max_new_tokens": arguments.max_new_tokens, "answer_regex": arguments.answer_regex}
    given = {name: value for name, value in settings.items() if value is not None}
    if not names:
        raise UsageError(f"--with names no evaluator; there are: {', '.join(EVALUATORS)}")
    entries, taken = [], set()
    for name in dict.fromkeys(names):
        if name not in EVALUATORS:
            raise UsageError(f"--with: {unknown(name, list(EVALUATORS))}")
        mine = () if loaded is None else loaded.spec.evaluate
        own: list[EvaluatorConfig] = [one for one in mine if one.type == name]
        if not own and name in asks:
            raise UsageError(f"--with: '{name}' has settings; score a split of a sweep with evaluate: [{asks[name]}]")
        entry = own[0] if own else parse_evaluator({"type": name})
        can = ("model",) if loaded is None else subjects(loaded.spec.pipeline)
        if can and not set(entry.subjects) & set(can):
            what = "a model alone" if loaded is None else f"what {loaded.spec.pipeline.type} makes"
            raise UsageError(f"--with: '{name}' can't score {what}")
        changes: dict[str, Any] = {key: value for key, value in given.items() if key in type(entry).model_fields}
        taken |= set(changes)
        if loaded is not None and arguments.limit is not None:
            changes["limit"] = arguments.limit
        for one in own or [entry]:
            changed = parse_evaluator({**one.model_dump(mode="json"), "when": None, **changes})
            entries.append(changed.model_dump(mode="json"))
    for key in given.keys() - taken:
        raise UsageError(f"--{key.replace('_', '-')} means nothing to {', '.join(names)}")
    return entries
