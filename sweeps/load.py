"""The door: a sweep file comes in, a typed sweep goes through, or every mistake comes back at once.

Nothing heavy is imported here or below (no torch, no ray, no numpy), so that `stockpot check` answers at once.

Example:
    >>> loaded = load_file("sweep.yaml", ["budget.trials=4"])
    >>> loaded.resolve({"learning_rate": 1e-4})["learning_rate"]
    0.0001
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators import parse_evaluator
from evaluators.config import Direction
from pipelines.config import PIPELINE_CONFIGS, DPOConfig, RagConfig, parse_pipeline, total_resource
from pipelines.cuts import cut_name
from pipelines.finetune.recipes import KEYS as RECIPE_KEYS
from pipelines.rag.models import LocalJudge
from sweeps.benchmark_rules import absolute_entry
from sweeps.data import pin
from sweeps.draft import Draft, make_draft, validate
from sweeps.fields import model_at, overlay
from sweeps.judge_rules import unearned
from sweeps.local import MODEL_KEYS, SWEEP, absolute
from sweeps.local_rag import absolute_rag, rag_values, replaced_sources
from sweeps.metrics import Metric, Timetable, timetable
from sweeps.overrides import apply_sets, write_out
from sweeps.parameters import parse
from sweeps.paths import SweepPaths, is_remote
from sweeps.problems import Problem, SpecError, show
from sweeps.rules import Verdicts, apply_rules
from sweeps.sources import Source, SourceError, resolve_source, unfoldable, with_teacher
from sweeps.space import Space
from sweeps.spec import NoneConfig, SweepSpec
from sweeps.track_rules import placed
from sweeps.yaml_source import Document, read

FORMAT = 1
"""Of `sweep.resolved.json`."""


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep file that has passed the door; it travels whole.

    Attributes:
        spec: the file, typed; `pipeline` is the first configuration, paths and storage are absolute.
        space: the search space.
        metrics: what is optimised; of several the first is the primary one.
        milestones: where runs are compared, ascending; the last is `total`. For runs of different lengths (never with
            asha) `milestones_of` tells a configuration's own.
        total: resource of a whole run, of the longest where they differ.
        finalists: trials that are sure to reach the total.
        trials: trials that will be asked for at most; None when only the hours end the sweep.
        warnings: what is legal but may not be meant.
        folder: the sweep file's, absolute; on the path of trials, for pipelines of one's own.
        pipeline: the `pipeline` section that parameters are put into, JSON.
        baseline: the baseline's changes by dotted path; None for the untuned model.
        sources: `sweep://` name -> the weights it meant at the door.
        pins: data file -> its SHA-256, `OWNER/NAME@REVISION` -> its commit, once the data were read; see `sweeps.data`.
    """

    spec: SweepSpec
    space: Space
    metrics: tuple[Metric, ...]
    milestones: tuple[int, ...]
    total: int
    finalists: int
    warnings: tuple[str, ...]
    folder: Path
    trials: int | None = None
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, Any] | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Full name of the primary metric, `tune/loss`."""
        return self.metrics[0].name

    @property
    def direction(self) -> Direction:
        """Which way is better on the primary metric."""
        return self.metrics[0].direction

    @property
    def paths(self) -> SweepPaths:
        """Where the sweep keeps things."""
        return SweepPaths.of(self.spec.storage, self.spec.name)

    @property
    def timetable(self) -> Timetable:
        """Which evaluators run when."""
        return timetable(self.spec, self.metrics)

    @property
    def also(self) -> tuple[str, ...]:
        """What else is shown of `tune`, full names: of RAG the first score of each entry, of preference tuning all scores."""
        metrics = {metric.name for metric in self.metrics}
        if isinstance(self.spec.pipeline, DPOConfig):
            when = self.timetable
            told = [f"tune/{name}" for entry in (*when.rung, *when.end) for name in parse_evaluator(entry).reports()]
            return tuple(name for name in dict.fromkeys(told) if name not in metrics)
        if not isinstance(self.spec.pipeline, RagConfig):
            return ()
        entries = [
            entry
            for entry in self.spec.evaluate
            if ("answer" in entry.subjects or entry.judged) and entry.when != "final"
        ]
        named = [f"tune/{next(iter(entry.reports()))}" for entry in entries]
        return tuple(name for name in named if name not in metrics)

    @property
    def judge(self) -> dict[str, Any] | None:
        """What evaluators' judge is, JSON; the same in all trials."""
        return None if self.spec.judge is None else self.spec.judge.model_dump(mode="json")

    def resolve(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's whole configuration (JSON): defaults filled in, paths absolute, `sweep://` replaced by path and hash.

        Args:
            parameters: dotted path -> value, as `Space.sample` and `Space.replay` give them.
        """
        return self._complete(overlay(self.pipeline, parameters, [type(self.spec.pipeline)]))

    def resolve_baseline(self) -> dict[str, Any] | None:
        """The baseline's whole configuration; None when it is the untuned model."""
        if self.baseline is None:
            return None
        first = self.spec.pipeline.model_dump(mode="json", exclude_unset=True)
        return self._complete(overlay(first, self.baseline, [type(self.spec.pipeline)]))

    def _complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        placed = _place(config, self.folder, self.sources, self.pins)
        complete: dict[str, Any] = parse_pipeline(placed, self.spec.resources.together).model_dump(mode="json")
        return complete

    def total_of(self, config: Mapping[str, Any]) -> int:
        """Resource of a whole run of a resolved configuration."""
        from sweeps.splitsizes import count_questions, count_rows

        if not isinstance(self.spec.early_terminate, NoneConfig):
            return self.total
        typed = parse_pipeline(config)
        workers = self.spec.resources.together
        return total_resource(typed, lambda datasets: count_rows(typed, datasets), count_questions, workers)

    def milestones_of(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Milestones of a resolved configuration; `milestones` wherever all runs have one length."""
        total = self.total_of(config)
        return self.milestones if total == self.total else (total,)

    def record(self) -> dict[str, Any]:
        """What `sweep.resolved.json` and the ledger hold: JSON, no secrets, all that `load_resolved` needs."""
        spec = self.spec.model_dump(mode="json")
        spec["pipeline"] = dict(self.pipeline)
        return {
            "format": FORMAT,
            "spec": spec,
            "folder": str(self.folder),
            "metrics": [{"name": metric.name, "direction": metric.direction} for metric in self.metrics],
            "milestones": list(self.milestones),
            "total": self.total,
            "finalists": self.finalists,
            "trials": self.trials,
            "baseline": None if self.baseline is None else dict(self.baseline),
            "sources": {name: source.record() for name, source in self.sources.items()},
            "pins": dict(self.pins),
            "warnings": list(self.warnings),
        }


def load_file(
    path: str | os.PathLike[str], sets: Sequence[str] = (), *, fetch: bool = False, gated: bool = True
) -> LoadedSweep:
    """Read a sweep file.

    Args:
        path: the YAML file, or a `sweep.resolved.json` to run again.
        sets: `--set` arguments, `key=value`.
        fetch: whether hub data sets may be fetched, where the length of a run depends on them.
        gated: whether a judged metric needs a card that reaches `judge.min_spearman`; not while the card is made.

    Raises:
        SpecError: with every mistake of the file and of the arguments.
    """
    file = Path(path)
    try:
        source = file.read_bytes()
    except IsADirectoryError:
        raise SpecError([Problem("", "is a folder; name the sweep file in it")], str(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError([Problem("", f"can't be read: {reason}")], str(path)) from None
    return load_text(source, Path(os.path.abspath(file)).parent, sets, str(path), fetch=fetch, gated=gated)


def load_text(
    source: bytes,
    folder: Path,
    sets: Sequence[str] = (),
    name: str = "",
    *,
    fetch: bool = False,
    gated: bool = True,
) -> LoadedSweep:
    """Read a sweep file's content; relative paths in it are relative to `folder`.

    Raises:
        SpecError: with every mistake.
    """
    document = read(source)
    if isinstance(document.data, dict) and document.data.get("format") == FORMAT and "spec" in document.data:
        folder = Path(str(document.data.get("folder", folder)))
        document = _inner(document)
    if not isinstance(document.data, dict):
        if not document.problems:
            what = "is empty" if document.data is None else f"{show(document.data)} is no sweep"
            document.problems.append(Problem("", f"{what}; a sweep file is a mapping with name, pipeline, metric"))
        raise SpecError(document.problems, name)
    write_out(document)
    apply_sets(document, sets)
    draft = make_draft(document, folder)
    draft.fetch = fetch
    verdicts = apply_rules(draft)
    sources = _find_sources(draft)
    verdicts.warnings += [source.note for source in sources.values() if source.note]
    if document.problems:
        raise SpecError(document.problems, name)
    loaded = _finish(draft, verdicts, sources)
    for message in unearned(loaded) if gated else ():
        draft.wrong(("judge", "min_spearman"), message)
    if document.problems:
        raise SpecError(document.problems, name)
    return loaded


def _inner(document: Document) -> Document:
    """The spec inside a resolved record, with its places."""
    values = {path[1:]: position for path, position in document.values.items() if path[:1] == ("spec",)}
    keys = {path[1:]: position for path, position in document.keys.items() if path[:1] == ("spec",) and len(path) > 1}
    return Document(document.data["spec"], values, keys, document.problems)


def _find_sources(draft: Draft) -> dict[str, Source]:
    """What every `sweep://` name of the file means."""
    found: dict[str, Source] = {}
    named = [(leaf.source, leaf.path, leaf.value) for leaf in draft.parsed.leaves]
    for path, value in _base_models(draft.written):
        if not draft.swept(path):
            named.append((("pipeline", *path.split(".")), path, value))
    if draft.sound("judge") and isinstance(draft.spec.judge, LocalJudge):
        named.append((("judge", "base_model"), "base_model", draft.spec.judge.base_model))
    for place, path, value in named:
        key = path.rpartition(".")[2]
        for text in value if isinstance(value, list) else [value]:
            if key not in MODEL_KEYS or not isinstance(text, str) or not text.startswith(SWEEP) or text in found:
                continue
            try:
                found[text] = resolve_source(text, draft.storage, draft.folder, several=key == "teacher")
            except SourceError as error:
                draft.wrong(place, str(error))
                continue
            why = next(filter(None, map(unfoldable, found[text].folders)), None)
            if why is not None:
                draft.wrong(
                    place, f"{show(text)} {why}; begin from its base model, or from a trial with another adapter"
                )
    return found


def _base_models(pipeline: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if pipeline.get("type") != "rag":
        return [(key, pipeline.get(key)) for key in MODEL_KEYS]
    return [(path, value) for path, value in rag_values(pipeline) if path.rpartition(".")[2] == "base_model"]


def _place(
    config: Mapping[str, Any], folder: Path, sources: Mapping[str, Source], pins: Mapping[str, str]
) -> dict[str, Any]:
    taught = with_teacher(absolute(pin(config, folder, pins), folder), sources)
    placed: dict[str, Any] = replaced_sources(taught, _found(sources))
    if "keep_layers" in placed and isinstance(placed.get("base_model"), str):
        keep = placed["keep_layers"]
        placed["base_model"] = cut_name(placed["base_model"], tuple(keep) if isinstance(keep, list) else keep)
    return placed


def _place_judge(judge: Mapping[str, Any] | None, folder: Path, sources: Mapping[str, Source]) -> dict[str, Any] | None:
    if judge is None:
        return None
    placed: dict[str, Any] = replaced_sources(absolute_rag(judge, folder), _found(sources))
    return placed


def _found(sources: Mapping[str, Source]) -> dict[str, tuple[str, str]]:
    return {name: (source.path, source.hash) for name, source in sources.items()}


def _finish(draft: Draft, verdicts: Verdicts, sources: Mapping[str, Source]) -> LoadedSweep:
    spec = draft.spec
    first = spec.pipeline.model_dump(mode="json", exclude_unset=True)
    whole = spec.model_dump(mode="json")
    whole["storage"] = spec.storage.rstrip("/") if is_remote(spec.storage) else str(draft.storage)
    whole["pipeline"] = _place(first, draft.folder, sources, {})
    whole["judge"] = _place_judge(whole["judge"], draft.folder, sources)
    whole["evaluate"] = [absolute_entry(entry, draft.folder) for entry in whole["evaluate"]]
    whole["track"] = placed(spec.track, draft.folder, SweepPaths.of(whole["storage"], spec.name))
    defaults = spec.pipeline.model_dump(mode="json")
    open_keys = RECIPE_KEYS if draft.swept("recipe") else frozenset()
    filled = {
        key: value
        for key, value in defaults.items()
        if key not in first and not draft.swept(key) and key not in open_keys
    }
    return LoadedSweep(
        spec=validate(whole),
        space=draft.parsed.space,
        metrics=verdicts.metrics,
        milestones=verdicts.milestones,
        total=verdicts.total,
        finalists=verdicts.finalists,
        warnings=tuple(verdicts.warnings),
        folder=draft.folder,
        trials=verdicts.trials,
        pipeline=absolute({**filled, **draft.written}, draft.folder),
        baseline=verdicts.baseline,
        sources=dict(sources),
    )


def load_resolved(path: str | os.PathLike[str]) -> LoadedSweep:
    """Read what `LoadedSweep.record` wrote; nothing is checked against the disk again.

    Raises:
        SpecError: if the file is not there or not ours.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        return from_record(record)
    except OSError as error:
        raise SpecError([Problem("", f"can't be read: {error.strerror}")], str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError([Problem("", f"is not a resolved sweep of this version: {error}")], str(path)) from None


def from_record(record: Mapping[str, Any]) -> LoadedSweep:
    """The inverse of `LoadedSweep.record`.

    Raises:
        ValueError: if the record is of another format; KeyError and TypeError if it is none.
    """
    if record["format"] != FORMAT:
        raise ValueError(f"its format must be {FORMAT}, but got {record['format']!r}")
    written = record["spec"]["pipeline"]
    folder = Path(record["folder"])
    document = Document(record["spec"])
    models = model_at(PIPELINE_CONFIGS, written, ())
    parsed = parse(document, record["spec"]["parameters"], models)
    from sweeps.draft import first

    sources = {name: Source.from_record(source) for name, source in record["sources"].items()}
    pins = record.get("pins", {})
    pipeline = _place(overlay(written, first(parsed, {}), models), folder, sources, pins)
    return LoadedSweep(
        spec=validate({**record["spec"], "pipeline": pipeline}),
        space=parsed.space,
        metrics=_metrics(record),
        milestones=tuple(record["milestones"]),
        total=record["total"],
        finalists=record["finalists"],
        warnings=tuple(record["warnings"]),
        folder=folder,
        trials=record["trials"],
        pipeline=written,
        baseline=record["baseline"],
        sources=sources,
        pins=pins,
    )


def _metrics(record: Mapping[str, Any]) -> tuple[Metric, ...]:
    """A sweep begun before there could be several has its one metric beside its direction."""
    one = {"name": record.get("metric"), "direction": record.get("direction")}
    return tuple(Metric(metric["name"], metric["direction"]) for metric in record.get("metrics", [one]))
