"""What the door says about evaluators with rows of their own: `multiple_choice` and `lm_eval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluators.benchmark_config import LMEvalConfig, MultipleChoiceConfig
from evaluators.config import EvaluatorConfig
from sweeps.draft import Draft
from sweeps.local import absolute_path
from sweeps.metrics import Metric, owner, soup_metric
from sweeps.problems import show, unknown
from sweeps.task_files import harness_folder, scored_during, sources
from sweeps.yaml_source import Place

FILES = ("tune", "select", "test")
INSTALL = "pip install 'stockpot[lm-eval]'"


def absolute_entry(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """An `evaluate` entry (JSON) with its paths made absolute; they are relative to the sweep file's folder."""
    paths = {"multiple_choice": FILES, "lm_eval": ("include_path",)}.get(str(entry["type"]), ())
    return {**entry, **{key: str(absolute_path(entry[key], folder)) for key in paths if entry[key] is not None}}


def check_benchmark(draft: Draft, entry: EvaluatorConfig, place: Place) -> None:
    """What an entry names is there."""
    if isinstance(entry, MultipleChoiceConfig):
        for key in FILES:
            path = getattr(entry, key)
            if path is not None and not absolute_path(path, draft.folder).is_file():
                draft.wrong((*place, key), f"{show(path)} is no file here; name a JSONL file of choice rows")
    elif isinstance(entry, LMEvalConfig):
        _check_tasks(draft, entry, place)


def _check_tasks(draft: Draft, entry: LMEvalConfig, place: Place) -> None:
    folder = _included(draft, entry)
    if harness_folder() is None:
        draft.wrong(place, f"'lm_eval' needs the package lm-eval, which is not installed: {INSTALL}")
        return
    if folder is not None and not folder.is_dir():
        draft.wrong(
            (*place, "include_path"), f"{show(entry.include_path)} is no folder here; name one of task files (YAML)"
        )
        return
    for index, task in enumerate(entry.tasks):
        among = sources(folder, task.name)
        if not any(task.name in files.names for files in among):
            names = sorted({name for files in among for name in files.names})
            near = unknown(task.name, names) if len(names) < 50 else _nearest(task.name, names)
            draft.wrong((*place, "tasks", index), f"lm-evaluation-harness has no such task: {near}")
        elif entry.when in ("rung", "end") and not scored_during(task.name, among):
            draft.wrong(
                (*place, "when"),
                f"'{entry.when}', but {task.name} has no validation split beside its test split, which the final step alone "
                "opens; write when: final",
            )


def _nearest(name: str, names: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, n=3)
    return f"{show(name)}; " + (f"did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists them")


def check_decides(draft: Draft, metrics: tuple[Metric, ...]) -> None:
    """What decides is scored during the sweep: on rows that are not the final step's."""
    listed = isinstance(draft.spec.metric, tuple)
    for index, metric in enumerate(metrics):
        place: Place = ("metric", index) if listed else ("metric",)
        entry = owner(metric.bare, draft.spec) if metric.scored else None
        if entry is not None:
            _has_rows(draft, entry, metric.bare, "tune", place)
    if draft.spec.soup is None or not draft.sound("soup") or not metrics:
        return
    bare = soup_metric(draft.spec, metrics)
    entry = owner(bare, draft.spec)
    if entry is None or entry.rows:
        return
    soup: Place = ("soup", "metric") if draft.spec.soup.metric is not None else ("soup",)
    _has_rows(draft, entry, bare, "select", soup)
    if getattr(draft.spec.soup, "early_stop", None) is not None:
        draft.wrong(
            ("soup", "early_stop"),
            f"{bare} has rows of its own, which are not scored in blocks; give soup.metric: loss",
        )


def _has_rows(draft: Draft, entry: EvaluatorConfig, bare: str, split: str, place: Place) -> None:
    """An entry has rows for a split that decides."""
    if isinstance(entry, MultipleChoiceConfig) and getattr(entry, split) is None:
        draft.wrong(place, f"{bare} is scored on {split}, and the entry multiple_choice has no {split}: FILE.jsonl")
    if not isinstance(entry, LMEvalConfig) or harness_folder() is None:
        return
    folder = _included(draft, entry)
    if folder is not None and not folder.is_dir():
        return
    for task in entry.tasks:
        among = sources(folder, task.name)
        if bare in ("lm_eval", f"lm_eval.{task.name}") and not scored_during(task.name, among):
            draft.wrong(
                place,
                f"{bare}: {task.name} has no validation split beside its test split, and a benchmark's test split decides "
                "nothing; decide by another metric and score it with when: final, or give a task file of your own with "
                "validation_split and test_split (include_path)",
            )


def _included(draft: Draft, entry: LMEvalConfig) -> Path | None:
    return None if entry.include_path is None else absolute_path(entry.include_path, draft.folder)
