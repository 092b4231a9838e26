"""What must hold between the sections of a sweep file. Each rule notes its mistakes at the value that breaks it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from evaluators.config import EVALUATOR_CONFIGS, EvaluatorConfig, name_of
from pipelines.config import AnyPipeline, Datasets, RagConfig, SFTConfig, total_resource
from pipelines.data.files import is_hub_id
from sweeps.budget import asked_for, finalists
from sweeps.complaints import complaints
from sweeps.draft import Draft, type_config
from sweeps.fields import lookup, overlay
from sweeps.judge_rules import asks_a_judge, check_judge
from sweeps.local import absolute
from sweeps.metric_rules import check_method, check_metrics, check_soup_metric
from sweeps.metrics import Metric, owner, subjects
from sweeps.problems import show
from sweeps.searchers.cover import GENERATIONS, covered, default_population, division
from sweeps.spec import (
    ASHAConfig,
    CMAESConfig,
    GPConfig,
    GridConfig,
    NoneConfig,
    NSGA2Config,
    RaceConfig,
    TPEConfig,
)
from sweeps.yaml_source import Place


@dataclass
class Verdicts:
    """What the rules worked out on the way; whole only when they found no mistake."""

    metrics: tuple[Metric, ...] = ()
    trials: int | None = None
    total: int = 1
    milestones: tuple[int, ...] = (1,)
    finalists: int = 1
    baseline: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)


SHARED = ("corpus", "questions", "answer_embedding")
"""Keys of a RAG pipeline that all trials share."""


def apply_rules(draft: Draft) -> Verdicts:
    """Check everything that concerns more than one section."""
    verdicts = Verdicts()
    _secrets(draft)
    _storage(draft)
    _several_devices(draft)
    _entries(draft)
    check_judge(draft)
    if draft.sound("metric", "evaluate") and (draft.sound("pipeline") or draft.models == (SFTConfig,)):
        verdicts.metrics = check_metrics(draft)
        _metric_needs(draft, verdicts.metrics)
        if draft.sound("method"):
            check_method(draft, verdicts.metrics)
    if draft.sound("parameters", "pipeline", "method", "budget"):
        _budget(draft, verdicts)
    if draft.sound("parameters", "pipeline", "method"):
        _method(draft, verdicts)
    if draft.sound("parameters", "pipeline"):
        _comparable(draft, verdicts)
        _moot(draft, verdicts)
        _half_precision(draft, verdicts)
    if draft.sound("early_terminate"):
        _rungs(draft, verdicts)
    if draft.sound("pipeline", "soup", "early_terminate", "keep", "budget", "method"):
        _soup(draft, verdicts)
    if draft.sound("pipeline", "baseline") and draft.spec.baseline is not None:
        verdicts.baseline = _baseline(draft, draft.spec.baseline)
    return verdicts


_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}\Z")
SECRET_NAME = re.compile(r"(TOKEN|API_?KEY|ACCESS_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|glpat-[\w-]{20,}"
    r"|xox[abp]-[\w-]{10,}|eyJ[\w-]{20,}\.[\w-]{20,})"
)


def _secrets(draft: Draft) -> None:
    """Secrets are named, never written: nothing of the file may go into the ledger that should not."""
    env = draft.document.data.get("env")
    for name, value in (env if isinstance(env, Mapping) else {}).items():
        if not isinstance(value, str) or _REFERENCE.match(value):
            continue
        if SECRET_NAME.search(name) or SECRET_VALUE.search(value):
            draft.wrong(
                ("env", name), f"a secret in plain text; export {name} in the shell, and write {name}: ${{{name}}}"
            )
        elif "${" in value:
            draft.wrong(("env", name), f"{show(value)} mixes a reference with text; write ${{NAME}} alone")
    for place, text in _texts(draft.document.data, ()):
        if place[:1] != ("env",) and SECRET_VALUE.search(text):
            mend = "looks like a secret; export it in the shell, and name it under env as NAME: ${NAME}"
            draft.wrong(place, mend)


def _texts(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield place, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _texts(inner, (*place, key))


def _storage(draft: Draft) -> None:
    storage = draft.spec.storage
    if draft.sound("storage") and "://" in storage:
        draft.wrong(("storage",), f"{show(storage)} is remote, which is not supported yet; give a local folder")
    elif draft.sound("storage") and not storage.strip():
        draft.wrong(("storage",), "is empty; give a folder, or delete the line")


def _several_devices(draft: Draft) -> None:
    gpus = draft.spec.resources.gpus
    if draft.sound("resources") and isinstance(gpus, float) and gpus > 1:
        draft.wrong(("resources", "gpus"), f"{gpus:g} GPUs for one trial is not supported yet; give at most 1")


def _entries(draft: Draft) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(draft.spec.evaluate if draft.sound("evaluate") else ()):
        if entry.type in seen:
            draft.wrong(("evaluate", index), f"'{entry.type}' stands twice; each evaluator has one entry")
        seen.add(entry.type)
        if draft.sound("pipeline"):
            _scorable(draft, entry, ("evaluate", index))


def _scorable(draft: Draft, entry: EvaluatorConfig, place: Place) -> None:
    """An evaluator scores what the pipeline makes, with what the file gives it."""
    pipeline = draft.spec.pipeline
    can = subjects(pipeline)
    if can and not set(entry.subjects) & set(can):
        known = sorted(name_of(config) for config in EVALUATOR_CONFIGS if set(config.subjects) & set(can))
        draft.wrong(place, f"'{name_of(type(entry))}' can't score {pipeline.type}; it can be {', '.join(known)}")
    elif isinstance(pipeline, RagConfig):
        _rag_needs(draft, entry, place)


def _rag_needs(draft: Draft, entry: EvaluatorConfig, place: Place) -> None:
    name = name_of(type(entry))
    silent = any(isinstance(c, RagConfig) and c.generate.type == "none" for _, c in draft.configs)
    if "retrieval" not in entry.subjects and silent:
        draft.wrong(
            place, f"'{name}' scores answers, but nothing is generated; write pipeline.generate: {{type: local, ...}}"
        )
    asks_a_judge(draft, entry, place)
    pipeline = draft.spec.pipeline
    if entry.embeds and isinstance(pipeline, RagConfig) and pipeline.answer_embedding is None:
        draft.wrong(place, f"'{name}' compares embeddings; write pipeline.answer_embedding: wordllama")


def _metric_needs(draft: Draft, metrics: Sequence[Metric]) -> None:
    listed = isinstance(draft.spec.metric, tuple)
    for index, metric in enumerate(metrics):
        entry = owner(metric.bare, draft.spec) if metric.scored else None
        if entry is not None and isinstance(draft.spec.pipeline, RagConfig):
            _rag_needs(draft, entry, ("metric", index) if listed else ("metric",))


def _budget(draft: Draft, verdicts: Verdicts) -> None:
    spec, space = draft.spec, draft.parsed.space
    continuous = list(space.continuous())
    if isinstance(spec.method, GridConfig) and continuous:
        name = continuous[0]
        axis = next(axis for axis in space.all_axes() if axis.name == name)
        draft.wrong(
            draft.source(axis.path), "a grid can't walk a continuous range; write a list, add q, or use method: tpe"
        )
        return
    trials, size = spec.budget.trials, space.size
    if trials is None and size is None and spec.budget.hours is None:
        name = continuous[0]
        place: Place = ("budget",) if "budget" in draft.document.data else ()
        draft.wrong(
            place or ("parameters",), f"{name} is continuous, so the sweep has no end; write budget: {{trials: 24}}"
        )
    if size is not None and trials is not None and trials > size:
        verdicts.warnings.append(f"budget.trials is {trials}, but there are only {size} configurations")
    verdicts.trials = asked_for(spec, size)


def _method(draft: Draft, verdicts: Verdicts) -> None:
    """A model needs parameters that every configuration has, and trials enough to learn from."""
    kind = draft.spec.method.type
    parts = division(kind, draft.parsed.space)
    if parts is not None and not parts[kind]:
        what = "numeric range" if kind == "cmaes" else "parameter with several values"
        draft.wrong(("method",), f"{kind} needs a {what} outside choose, and there is none; use method: tpe")
        return
    method, trials = draft.spec.method, verdicts.trials
    if trials is None:
        return
    if isinstance(method, TPEConfig | GPConfig) and trials <= method.n_startup_trials:
        verdicts.warnings.append(
            f"the first {method.n_startup_trials} trials of {kind} are random draws, and there are only {trials}; so this is random search"
        )
    if isinstance(method, CMAESConfig | NSGA2Config):
        size = method.population_size or default_population(len(covered(kind, draft.parsed.space)))
        if trials < GENERATIONS * size:
            verdicts.warnings.append(
                f"{trials} trials are {trials / size:.2g} generations of {kind}; with fewer than {GENERATIONS} it finds little more than "
                f"random search: give {GENERATIONS * size} trials, or use method: tpe"
            )


def _comparable(draft: Draft, verdicts: Verdicts) -> None:
    """All trials are scored on the same rows."""
    for path, place in draft.parsed.origins.items():
        words = path.split(".")
        if words[0] in SHARED:
            draft.wrong(
                place, f"'{path}' decides what trials are scored on, so all share it; give it one value under pipeline"
            )
        if words[0] != "datasets":
            continue
        if words[1:2] != ["train"]:
            draft.wrong(
                place, f"'{path}' decides what trials are scored on, so all share it; give it one value under pipeline"
            )
        elif isinstance(draft.spec.pipeline, SFTConfig) and draft.spec.pipeline.datasets.fractions:
            shares = ", ".join(draft.spec.pipeline.datasets.fractions)
            draft.wrong(
                place, f"'{path}' changes {shares} as well, taken from train by fraction; give each a file of its own"
            )
    if draft.swept("sequence_len"):
        verdicts.warnings.append(
            "sequence_len is swept: longer rows are cut at different places, so losses differ by that too"
        )


def _moot(draft: Draft, verdicts: Verdicts) -> None:
    """A value that has no effect in some configurations doubles trials: it belongs inside an arm."""
    swept: dict[str, str] = {}
    written: dict[str, list[str]] = {}
    for parameters, config in draft.configs:
        for key, why in config.moot().items():
            if key in parameters:
                swept.setdefault(key, why)
            else:
                written.setdefault(key, []).append(why)
    for key, why in swept.items():
        mend = "put it inside an arm of choose"
        if why.startswith("adapter"):
            mend = f"write adapter: {{choose: {{lora: {{{key}: [...]}}, none: {{}}}}}}"
        draft.wrong(draft.source(key), f"{key} has no effect where {why}, so trials would be equal; {mend}")
    for key, whys in written.items():
        if len(whys) == len(draft.configs):
            verdicts.warnings.append(f"pipeline.{key} has no effect: {whys[0]}")


def _half_precision(draft: Draft, verdicts: Verdicts) -> None:
    """Fp16 on a CPU is right, but was 17 times slower than fp32 where the CPU has no instructions for it."""
    asked = any(isinstance(config, SFTConfig) and config.precision == "fp16" for _, config in draft.configs)
    if asked and draft.sound("resources") and draft.spec.resources.gpus == 0:
        verdicts.warnings.append(
            "precision: fp16 is for GPUs; most CPUs are many times slower in it than in fp32 or bf16"
        )


class _DataError(ValueError):
    """The rows can't be counted; the message names file and line."""


def totals(draft: Draft) -> set[int]:
    """Resource of a whole run, over the configurations that were built; empty, with a problem, when data can't be read."""
    counted: dict[str, int] = {}
    found: set[int] = set()
    for _, config in draft.configs:

        def rows(datasets: Datasets, config: AnyPipeline = config) -> int:
            key = datasets.model_dump_json()
            if key not in counted:
                counted[key] = _count_rows(datasets, config, draft)
            return counted[key]

        try:
            found.add(total_resource(config, rows, lambda config: _count_questions(config, draft)))
        except _DataError as error:
            draft.wrong(("pipeline", "questions" if isinstance(config, RagConfig) else "datasets"), str(error))
            return set()
    return found


def _count_rows(datasets: Datasets, config: AnyPipeline, draft: Draft) -> int:
    from pipelines.splits import count_train
    from pipelines.stage import UserError

    placed = Datasets.model_validate(absolute({"datasets": datasets.model_dump(mode="json")}, draft.folder)["datasets"])
    unread = list(dict.fromkeys(data.path for data in placed.files.values() if is_hub_id(data.path)))
    if unread and not draft.fetch:
        raise _DataError(
            f"num_epochs needs the rows of {' and '.join(unread)}, which are fetched by `submit` and `check --data` alone; add "
            "--data, or give max_steps"
        )
    try:
        return count_train(placed, config.seed_data if isinstance(config, SFTConfig) else 0)
    except UserError as error:
        raise _DataError(str(error)) from None


def _count_questions(config: RagConfig, draft: Draft) -> int:
    from pipelines.rag.questions import count_tune
    from pipelines.stage import UserError

    key = config.questions_section.model_dump_json()
    if key not in draft.questions:
        placed = RagConfig.model_validate(absolute(config.model_dump(mode="json"), draft.folder))
        try:
            draft.questions[key] = count_tune(placed)
        except UserError as error:
            raise _DataError(str(error)) from None
    return draft.questions[key]


def _rungs(draft: Draft, verdicts: Verdicts) -> None:
    rule = draft.spec.early_terminate
    lengths = next((key for key in ("max_steps", "num_epochs", "total") if draft.swept(key)), None)
    if isinstance(rule, ASHAConfig) and lengths is not None:
        draft.wrong(
            draft.source(lengths), f"runs differ in length, so asha can't compare them; give {lengths} one value"
        )
        return
    found = totals(draft)
    if not found:
        return
    verdicts.total = max(found)
    verdicts.milestones = (verdicts.total,)
    if isinstance(rule, RaceConfig):
        _race(draft, rule, verdicts)
    if not isinstance(rule, ASHAConfig):
        return
    if len(found) > 1:
        steps = f"{min(found)} to {max(found)} steps"
        draft.wrong(
            ("pipeline", "num_epochs"), f"makes {steps}, by batch size, and asha can't compare them; give max_steps"
        )
        return
    if rule.max is not None and rule.max != verdicts.total:
        message = f"{rule.max} is not the length of a run, which is {verdicts.total}; delete max"
        draft.wrong(("early_terminate", "max"), message)
    if rule.min >= verdicts.total:
        message = f"the first rung {rule.min} must come before the end of a run, {verdicts.total}"
        draft.wrong(("early_terminate", "min"), message)
    else:
        verdicts.milestones = rule.milestones(verdicts.total)


def _race(draft: Draft, rule: RaceConfig, verdicts: Verdicts) -> None:
    """A race is over questions, on one metric in 0..1, by configurations that all begin together."""
    spec, place = draft.spec, ("early_terminate",)
    if not isinstance(spec.pipeline, RagConfig):
        draft.wrong((*place, "type"), f"race is over questions, and {spec.pipeline.type} has none; use asha")
        return
    if spec.method.type not in ("grid", "random"):
        mend = "write method: grid, or random with budget.trials"
        draft.wrong(
            (*place, "type"),
            f"a race needs all configurations at its start, and {spec.method.type} chooses later; {mend}",
        )
    if len(verdicts.metrics) > 1 or any(not metric.scored for metric in verdicts.metrics):
        draft.wrong((*place, "type"), "a race compares one score between 0 and 1; name one metric that is a score")
    if len(spec.seeds.tune) > 1:
        draft.wrong(("seeds", "tune"), "a race takes one seed; questions are what it repeats")
    if spec.pipeline.questions_section.group_by is not None:
        draft.wrong(
            (*place, "type"), "a race counts every question once, which groups forbid; delete questions.group_by"
        )
    if rule.block >= verdicts.total:
        draft.wrong(
            (*place, "block"), f"{rule.block} questions are not fewer than the {verdicts.total} of tune; lower it"
        )
    else:
        verdicts.milestones = rule.milestones(verdicts.total)


def _soup(draft: Draft, verdicts: Verdicts) -> None:
    spec, rule, soup, trials = draft.spec, draft.spec.early_terminate, draft.spec.soup, verdicts.trials
    if soup is not None:
        _soup_scores(draft, verdicts)
        runs = None if trials is None else trials * len(spec.seeds.tune)
        if runs is not None and soup.top > runs and "top" in soup.model_fields_set:
            draft.wrong(
                ("soup", "top"), f"{soup.top} runs for the soup, but there are only {runs}; lower top, or ask for more"
            )
        elif runs is not None and soup.top > runs:
            verdicts.warnings.append(f"soup.top is {soup.top} by default, but there are only {runs} runs")
        if spec.keep.best is not None and spec.keep.best < soup.top:
            message = (
                f"{spec.keep.best} checkpoints are fewer than the {soup.top} that the soup needs; raise it to soup.top"
            )
            draft.wrong(("keep", "best"), message)
    verdicts.finalists = finalists(spec, trials)
    if isinstance(rule, NoneConfig):
        return
    if rule.finalists is not None:
        if trials is not None and rule.finalists > trials:
            draft.wrong(
                ("early_terminate", "finalists"),
                f"{rule.finalists} finalists of {trials} trials; give at most {trials}",
            )
        if soup is not None and soup.top > rule.finalists:
            place = ("soup", "top") if "top" in soup.model_fields_set else ("soup",)
            message = (
                f"{soup.top} runs, but only {rule.finalists} are sure to be finalists; lower top, or raise finalists"
            )
            draft.wrong(place, message)
        return
    if soup is not None and soup.top > verdicts.finalists:
        verdicts.warnings.append(
            f"soup.top is {soup.top}, but only {verdicts.finalists} of {trials} trials are sure to reach the end; "
            "the soup takes those that do"
        )


def _soup_scores(draft: Draft, verdicts: Verdicts) -> None:
    spec = draft.spec
    if isinstance(spec.pipeline, SFTConfig) and spec.pipeline.datasets.select is None:
        message = "a soup is chosen on rows of its own; write pipeline.datasets.select: {fraction: 0.05}"
        draft.wrong(("soup",), message)
    if verdicts.metrics:
        check_soup_metric(draft, verdicts.metrics)


def _baseline(draft: Draft, baseline: Mapping[str, Any]) -> dict[str, Any]:
    """The baseline's changes by dotted path, validated in the configuration they make."""
    flat: dict[str, Any] = {}
    places: dict[str, Place] = {}
    _flatten(draft, baseline, ("baseline",), (), flat, places)
    config = overlay(draft.spec.pipeline.model_dump(mode="json", exclude_unset=True), flat, draft.models)
    try:
        type_config(config)
    except ValidationError as error:
        for found in complaints(error, config, draft.models, "baseline"):
            path = ".".join(str(part) for part in found.path)
            place = next((places[key] for key in places if path == key or path.startswith(f"{key}.")), ("baseline",))
            draft.document.problems.append(draft.document.problem(place, found.message, key=found.on_key))
    return flat


def _flatten(
    draft: Draft,
    raw: Mapping[str, Any],
    place: Place,
    path: tuple[str, ...],
    flat: dict[str, Any],
    places: dict[str, Place],
) -> None:
    for key, value in raw.items():
        words = tuple(key.split("."))
        here = (*path, *(words[1:] if not path and words[0] == "pipeline" else words))
        if isinstance(value, Mapping) and (not here or lookup(draft.models, here).models):
            _flatten(draft, value, (*place, key), here, flat, places)
        else:
            flat[".".join(here)] = value
            places[".".join(here)] = (*place, key)
