"""`evaluate-judge`: how well a metric, and the judge behind it, agrees with people; the result is a metric card."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import UsageError
from sweeps.paths import SweepPaths

if TYPE_CHECKING:
    from evaluators.answers import Tools
    from evaluators.config import EvaluatorConfig
    from pipelines.calls import Calls, Usage
    from sweeps.human_labels import Labels
    from sweeps.load import LoadedSweep

OUTSIDE = "wordllama"
"""What compares texts where no sweep file says it."""
ANSWERABILITY = "answerability"
"""Not a metric of a sweep: the judge's own verdict whether a passage answers a question."""


def evaluate_judge(arguments: argparse.Namespace) -> int:
    """Score the answers of a file that people have judged, and write a metric card about how the two agree."""
    from sweeps.cards import FORMAT, write_card
    from sweeps.human_labels import read_labels

    loaded = _sweep(arguments)
    storage = Path(arguments.storage).expanduser().resolve() if loaded is None else loaded.paths.root.parent
    entry = _entry(arguments.metric, loaded)
    path = Path(arguments.on).expanduser()
    labels = read_labels(path, arguments.limit)
    items, usage = _items(arguments.metric, entry, labels, loaded, storage)
    measures = _measures(labels, items)
    coverage = sum(not math.isnan(item) for item in items) / len(items)
    first = labels.names[0]
    if not measures[first]["n"] and not _heard(usage):
        reasons = [reason for used in usage.values() for reason in used.reasons]
        why = f": {'; '.join(reasons)}" if reasons else ""
        raise UsageError(f"{arguments.metric} could score none of the {len(items)} answers of {path}{why}")
    card = {
        "format": FORMAT,
        "subject": _subject(arguments.metric, entry, loaded),
        "data": {
            "file": path.name,
            "hash": hashlib.sha256(path.read_bytes()).hexdigest(),
            "shape": labels.shape,
            "limit": arguments.limit,
        },
        "label": first,
        "coverage": coverage,
        "measures": measures,
        **{key: measures[first][key] for key in ("n", "spearman", "spearman_interval", "ceiling")},
        "made_at": datetime.now(UTC).isoformat(),
    }
    place = write_card(storage, card)
    print(json.dumps({**card, "card": str(place)}, indent=2, allow_nan=False) if arguments.json else _text(card, place))
    return 0


def _sweep(arguments: argparse.Namespace) -> LoadedSweep | None:
    """The sweep file whose judge, embedding and settings are used; no card is asked of it, as one is being made."""
    from sweeps.load import load_file

    return None if arguments.judge is None else load_file(arguments.judge, gated=False)


def _entry(metric: str, loaded: LoadedSweep | None) -> EvaluatorConfig | None:
    """What reports the metric, with the settings of the sweep file; None for `answerability`.

    Raises:
        UsageError: for a metric that answers do not have, or one that asks a judge where none is given.
    """
    from evaluators.config import default_entries
    from sweeps.problems import unknown

    judge = loaded is not None and loaded.spec.judge is not None
    entry = None
    if metric != ANSWERABILITY:
        entries = [*(loaded.spec.evaluate if loaded is not None else ()), *default_entries()]
        known = [one for one in entries if "answer" in one.subjects or one.judged]
        entry = next((one for one in known if one.reporting(metric) is not None), None)
        if entry is None:
            names = [*dict.fromkeys(name for one in known for name in one.metrics), ANSWERABILITY]
            raise UsageError(f"--metric {unknown(metric, names)}")
    if (entry is None or entry.judged) and not judge:
        raise UsageError(f"{metric} asks a judge; give a sweep file that has one: --judge SWEEP.yaml")
    return entry


def _subject(metric: str, entry: EvaluatorConfig | None, loaded: LoadedSweep | None) -> dict[str, Any]:
    from evaluators.config import ContextPrecisionConfig
    from sweeps.cards import subject_of

    spec = None if loaded is None else loaded.spec
    return subject_of(metric, entry or ContextPrecisionConfig(), spec, OUTSIDE)


def _items(
    metric: str, entry: EvaluatorConfig | None, labels: Labels, loaded: LoadedSweep | None, storage: Path
) -> tuple[list[float], Mapping[str, Usage]]:
    """The metric of every answer, and what models were asked for it."""
    from evaluators import build_evaluator
    from evaluators.judge import answerable

    calls = _calls(loaded, storage)
    tools = _tools(loaded, calls)
    if entry is None:
        assert tools.judge is not None, "answerability was given no judge; it has been checked"
        said = answerable(tools.judge, [(one.question.text, one.context) for one in labels.answered])
        found = [math.nan if verdict is None else float(verdict) for verdict in said]
    else:
        scorer: Any = build_evaluator(entry)
        scores = scorer.evaluate_answers(labels.answered, "test", tools)
        score = next(score for score in scores if score.name == metric)
        found = [float(item) for item in score.items]
    return found, calls.usage


def _heard(usage: Mapping[str, Usage]) -> bool:
    """Whether the judge answered at all: then it is its own doing that nothing could be scored, and the card says so."""
    from pipelines.rag.judging import STAGE

    return STAGE in usage and usage[STAGE].calls > usage[STAGE].unanswered


def _calls(loaded: LoadedSweep | None, storage: Path) -> Calls:
    """A way to models of this process, with the memo of the sweep's storage."""
    from pipelines.calls import make_calls
    from pipelines.memo import open_memo
    from pipelines.stage import Devices, Services
    from sweeps.paths import cache_dir
    from sweeps.secret_values import filled_in

    secrets: Mapping[str, str] = {**os.environ, **filled_in(loaded.spec.env if loaded is not None else {})}
    memo = partial(open_memo, str(SweepPaths.of(storage, "any").memo))
    services = Services(memo=memo, secret=secrets.__getitem__, cache=str(cache_dir()))
    return make_calls(services, f"evaluate-judge/{os.getpid()}", Devices(float(os.cpu_count() or 1)))


def _tools(loaded: LoadedSweep | None, calls: Calls) -> Tools:
    from evaluators.answers import Tools
    from pipelines.config import RagConfig
    from pipelines.rag.embed import build_embedder
    from pipelines.rag.judging import build_judge

    pipeline = None if loaded is None else loaded.spec.pipeline
    named = pipeline.answer_embedding if isinstance(pipeline, RagConfig) else OUTSIDE
    embed = None if named is None else build_embedder(named, calls).queries
    judge = None if loaded is None or loaded.spec.judge is None else build_judge(loaded.spec.judge, calls)
    return Tools(judge, embed)


def _measures(labels: Labels, items: list[float]) -> dict[str, dict[str, Any]]:
    """By label: both correlations with their intervals, and what people have among themselves."""
    from evaluators.agreement import agreement, pearson, spearman

    values, questions = labels.values(items), [judgement.question for judgement in labels.judgements]
    found: dict[str, dict[str, Any]] = {}
    for label in labels.names:
        measured = asdict(agreement(values, [one.labels[label] for one in labels.judgements], questions))
        mine, theirs, _ = labels.among_themselves(label)
        import numpy as np

        columns = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        ceilings = {"ceiling": spearman(*columns), "ceiling_pearson": pearson(*columns)}
        found[label] = {key: _plain(value) for key, value in {**measured, **ceilings}.items()}
    return found


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(card: Mapping[str, Any], place: Path) -> str:
    """What the command prints for people."""
    from evaluators.agreement import DRAWS

    subject, data = card["subject"], card["data"]
    judge = subject["judge"]
    by = "" if judge is None else f" by {judge.get('model') or judge.get('base_model')}"
    rows: list[tuple[str, ...]] = [("label", "n", "Spearman", "Pearson", "people among themselves")]
    for label, measured in card["measures"].items():
        people = measured["ceiling"], measured["ceiling_pearson"]
        rows.append(
            (
                label,
                str(measured["n"]),
                _interval(measured["spearman"], measured["spearman_interval"]),
                _interval(measured["pearson"], measured["pearson_interval"]),
                "" if None in people else f"{people[0]:.3f}, Pearson {people[1]:.3f}",
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [f"{subject['metric']}{by} against people on {data['file']}, {card['coverage']:.0%} of the answers scored"]
    lines += ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    clusters = card["measures"][card["label"]]["clusters"]
    drawn = f"in brackets 95 %, by bootstrap over {clusters} questions ({DRAWS:,} draws)"
    lines.append(f"  {drawn if clusters else 'what the judge answers lacks the verdicts that the metric needs'}")
    return "\n".join([*lines, f"card: {place}"])


def _interval(value: float | None, interval: list[float | None]) -> str:
    if value is None:
        return "none"
    low, high = interval
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
