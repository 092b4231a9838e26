"""What must hold between the sections of a sweep file. Each rule notes its mistakes at the value that breaks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluators.config import EVALUATOR_CONFIGS, EvaluatorConfig, name_of
from pipelines.config import DPOConfig, FineTuneConfig, RagConfig, SFTConfig
from pipelines.finetune.config import ADAPTER_KEYS
from sweeps.baseline_rules import check_baseline
from sweeps.benchmark_rules import check_benchmark, check_decides
from sweeps.budget import asked_for, finalists
from sweeps.draft import Draft
from sweeps.judge_rules import asks_a_judge, check_judge
from sweeps.layer_rules import check_layers
from sweeps.metric_rules import check_method, check_metrics, check_soup_metric
from sweeps.metrics import Metric, owner, subjects
from sweeps.package_rules import check_packages
from sweeps.paths import is_remote
from sweeps.problems import show
from sweeps.rung_rules import check_rungs
from sweeps.schemes import problem
from sweeps.searchers.cover import GENERATIONS, covered, default_population, division
from sweeps.secret_rules import check_secrets
from sweeps.soup_spec import LearnedSoupConfig, SparseSoupConfig
from sweeps.spec import (
    CMAESConfig,
    GPConfig,
    GridConfig,
    NoneConfig,
    NSGA2Config,
    TPEConfig,
)
from sweeps.track_rules import check_trackers
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
    check_secrets(draft)
    _storage(draft)
    _several_workers(draft, verdicts)
    _entries(draft)
    check_judge(draft)
    if draft.sound("track"):
        check_trackers(draft)
    if draft.sound("metric", "evaluate") and (draft.sound("pipeline") or _fine_tunes(draft)):
        verdicts.metrics = check_metrics(draft)
        _metric_needs(draft, verdicts.metrics)
        check_decides(draft, verdicts.metrics)
        if draft.sound("method"):
            check_method(draft, verdicts.metrics)
    if draft.sound("parameters", "pipeline", "method", "budget"):
        _budget(draft, verdicts)
    if draft.sound("parameters", "pipeline", "method"):
        _method(draft, verdicts)
    if draft.sound("parameters", "pipeline"):
        check_layers(draft)
        _comparable(draft, verdicts)
        _moot(draft, verdicts)
        _half_precision(draft, verdicts)
        _remote_code(draft, verdicts)
        check_packages(draft)
    if draft.sound("pipeline", "resources"):
        _energy(draft, verdicts)
    if draft.sound("early_terminate"):
        verdicts.total, verdicts.milestones = check_rungs(draft, verdicts.metrics)
    if draft.sound("pipeline", "soup", "early_terminate", "keep", "budget", "method"):
        _soup(draft, verdicts)
    if draft.sound("pipeline", "baseline") and draft.spec.baseline is not None:
        verdicts.baseline = check_baseline(draft, draft.spec.baseline)
    return verdicts


def _storage(draft: Draft) -> None:
    storage = draft.spec.storage
    if draft.sound("storage") and is_remote(storage):
        message = problem(storage)
        if message is not None:
            draft.wrong(("storage",), f"{show(storage)}: {message}")
    elif draft.sound("storage") and not storage.strip():
        draft.wrong(("storage",), "is empty; give a folder, or delete the line")


def _several_workers(draft: Draft, verdicts: Verdicts) -> None:
    """Only fine-tunes know how to share a trial's steps, and only several workers have something to share."""
    if not draft.sound("resources", "pipeline"):
        return
    resources, pipeline = draft.spec.resources, draft.spec.pipeline
    if resources.together > 1 and not isinstance(pipeline, FineTuneConfig):
        key = "gpus" if resources.workers is None else "workers"
        draft.wrong(
            ("resources", key),
            f"{resources.together} processes for one trial are for fine-tunes, but this is {pipeline.type}; give 1",
        )
    if resources.together == 1 and draft.sound("parameters") and draft.swept("parallel"):
        draft.wrong(
            draft.source("parallel"),
            "parallel has no effect where one worker trains a trial, so trials would be equal; write resources: {gpus: 2}, or more",
        )
    elif resources.together == 1 and isinstance(pipeline, FineTuneConfig) and pipeline.parallel == "fsdp":
        verdicts.warnings.append(
            "pipeline.parallel has no effect: one worker trains a trial; resources: {gpus: 2} gives it two"
        )


def _fine_tunes(draft: Draft) -> bool:
    """Whether the pipeline, sound or not, is a fine-tune of a known kind."""
    return len(draft.models) == 1 and issubclass(draft.models[0], FineTuneConfig)


def _entries(draft: Draft) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(draft.spec.evaluate if draft.sound("evaluate") else ()):
        twice = next((name for name in entry.reports() if name in seen), None)
        if twice is not None:
            alone = "; an entry of one task reports no lm_eval beside it" if twice == "lm_eval" else ""
            told = f"'{entry.type}' stands twice; each evaluator has one entry"
            if entry.slot != entry.type:
                told = f"{twice} is reported twice; each metric has one entry{alone}"
            draft.wrong(("evaluate", index), told)
        seen.update(entry.reports())
        check_benchmark(draft, entry, ("evaluate", index))
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
    elif isinstance(pipeline, DPOConfig):
        asks_a_judge(draft, entry, place)


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
        place: Place = ("metric", index) if listed else ("metric",)
        if entry is not None and isinstance(draft.spec.pipeline, RagConfig):
            _rag_needs(draft, entry, place)
        elif entry is not None and isinstance(draft.spec.pipeline, DPOConfig):
            asks_a_judge(draft, entry, place)


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
        if words[1:2] == ["strategy"]:
            continue
        if words[1:2] != ["train"]:
            draft.wrong(
                place, f"'{path}' decides what trials are scored on, so all share it; give it one value under pipeline"
            )
        elif isinstance(draft.spec.pipeline, FineTuneConfig) and draft.spec.pipeline.datasets.fractions:
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
            with_it = ADAPTER_KEYS.get(key, ("lora",))
            used = [c.adapter for _, c in draft.configs if isinstance(c, FineTuneConfig)]
            arm = next((adapter for adapter in used if adapter in with_it), with_it[0])
            mend = f"write adapter: {{choose: {{{arm}: {{{key}: [...]}}, {why.rpartition(' ')[2]}: {{}}}}}}"
        if why.startswith("optimizer is "):
            has, lacks = _arms(key, why.removeprefix("optimizer is "))
            mend = f"write optimizer: {{choose: {{{has}: {{{key}: [...]}}, {lacks}: {{}}}}}}"
        draft.wrong(draft.source(key), f"{key} has no effect where {why}, so trials would be equal; {mend}")
    for key, whys in written.items():
        if len(whys) == len(draft.configs):
            verdicts.warnings.append(f"pipeline.{key} has no effect: {whys[0]}")


def _arms(key: str, lacks: str) -> tuple[str, str]:
    """An optimizer that has a use for a key, and one that has none."""
    return ("prodigy" if key.startswith("prodigy") else "adamw"), lacks


def _energy(draft: Draft, verdicts: Verdicts) -> None:
    if isinstance(draft.spec.pipeline, RagConfig) and "energy" in draft.spec.resources.model_fields_set:
        verdicts.warnings.append("resources.energy has no effect: RAG trials ask models that all of them share")


def _half_precision(draft: Draft, verdicts: Verdicts) -> None:
    """Fp16 on a CPU is right, but was 17 times slower than fp32 where the CPU has no instructions for it."""
    asked = any(isinstance(config, FineTuneConfig) and config.precision == "fp16" for _, config in draft.configs)
    if asked and draft.sound("resources") and draft.spec.resources.gpus == 0:
        verdicts.warnings.append(
            "precision: fp16 is for GPUs; most CPUs are many times slower in it than in fp32 or bf16"
        )


def _trusted(value: Any) -> Iterator[str]:
    """Models whose own code a configuration trusts."""
    if isinstance(value, Mapping):
        if value.get("trust_remote_code") is True:
            yield str(value.get("base_model") or value.get("model"))
        for inner in value.values():
            yield from _trusted(inner)


def _remote_code(draft: Draft, verdicts: Verdicts) -> None:
    """Foreign code runs by the file's own word alone, and never unsaid."""
    leaves = draft.parsed.leaves
    if not any(leaf.path.endswith("trust_remote_code") or any(_trusted(leaf.value)) for leaf in leaves) and not any(
        _trusted(draft.written)
    ):
        return
    models = {name for _, config in draft.configs for name in _trusted(config.model_dump(mode="json"))}
    if models:
        verdicts.warnings.append(
            f"trust_remote_code: Python that comes with {' and '.join(sorted(models))} will run here, as you"
        )


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
    if isinstance(spec.pipeline, FineTuneConfig) and spec.pipeline.datasets.select is None:
        message = "a soup is chosen on rows of its own; write pipeline.datasets.select: {fraction: 0.05}"
        draft.wrong(("soup",), message)
    if isinstance(spec.soup, SparseSoupConfig) and not isinstance(spec.pipeline, SFTConfig):
        draft.wrong(
            ("soup", "method"), f"sparse prunes and retrains what sft trains, and {spec.pipeline.type} is another kind"
        )
    if isinstance(spec.soup, LearnedSoupConfig) and isinstance(spec.pipeline, DPOConfig):
        draft.wrong(("soup", "method"), "learned minimises the likelihood of answers, not dpo's loss; take greedy")
    if verdicts.metrics:
        check_soup_metric(draft, verdicts.metrics)
