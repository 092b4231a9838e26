"""`show` and `compare`, and what a driver's end prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import UsageError, find_sweep, trial_named, word_for
from sweeps.paths import SweepPaths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sweeps.board import Leaderboard
    from sweeps.compare import Source
    from sweeps.load import LoadedSweep
    from sweeps.metrics import Metric
    from sweeps.state import SweepState

PLAIN_WIDTH = 120
"""Columns where standard output is no terminal."""


def show(arguments: argparse.Namespace) -> int:
    """The leaderboard, the soup's story and the verdicts."""
    from sweeps.board import to_csv

    paths = find_sweep(arguments.name, arguments.storage)
    if arguments.json:
        print(json.dumps(sweep_record(paths, arguments.top), indent=2, allow_nan=False))
    elif arguments.csv:
        print(to_csv(read_board(paths, arguments.top)[1]), end="")
    else:
        print_sweep(paths, arguments.top)
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """The best trials of one sweep or of several, paired on their stored item scores; with `--by` all, method by method."""
    from sweeps import compare as comparing
    from sweeps.fold import fold
    from sweeps.ledger import Ledger
    from sweeps.load import load_resolved

    if arguments.by is not None and (arguments.top is not None or arguments.trial):
        raise UsageError("--by takes all configurations; leave out --top and --trial")
    if arguments.top is not None and arguments.top < 2:
        raise UsageError(f"--top must be at least 2 to compare anything, but got {arguments.top}")
    sweeps = [find_sweep(name, arguments.storage) for name in arguments.names]
    if len({paths.root for paths in sweeps}) < len(sweeps):
        raise UsageError("the same sweep is named twice")
    with contextlib.ExitStack() as stack:
        plans = [load_resolved(paths.resolved_spec) for paths in sweeps]
        sources = []
        for paths, plan in zip(sweeps, plans, strict=True):
            ledger = Ledger.read(paths.root)
            stack.callback(ledger.close)
            sources.append(comparing.Source(paths.name, fold(ledger.events()), ledger, plan))
        try:
            record, text = _compared(arguments, plans, sources)
        except comparing.CompareError as error:
            raise UsageError(str(error)) from error
    print(json.dumps(record, indent=2, allow_nan=False) if arguments.json else text)
    return 0


def _compared(
    arguments: argparse.Namespace, plans: Sequence[LoadedSweep], sources: Sequence[Source]
) -> tuple[dict[str, Any], str]:
    """The comparison as JSON and as text.

    Raises:
        CompareError: when there is nothing to compare.
    """
    from sweeps.compare import compare_all
    from sweeps.compare_text import all_to_json, all_to_text, methods_to_text
    from sweeps.methods import robustness

    asked = _asked(arguments, plans)
    if arguments.by is not None:
        methods = robustness(sources, arguments.by, metrics=asked)
        return methods.record(), methods_to_text(methods, _width())
    comparison = compare_all(sources, metrics=asked, only=_only(arguments, sources), top=arguments.top or 8)
    return all_to_json(comparison), all_to_text(comparison, _width())


def _asked(arguments: argparse.Namespace, plans: Sequence[LoadedSweep]) -> list[Metric]:
    """What `--metric` names, the same in all sweeps.

    Raises:
        UsageError: for a name that is no metric of theirs.
    """
    from sweeps.metrics import MetricError, asked_metric

    found: dict[str, Metric] = {}
    for word in arguments.metric or ():
        for plan in plans:
            try:
                metric = asked_metric(word, plan.metrics, plan.spec)
            except MetricError as error:
                raise UsageError(f"--metric: {error}") from None
            if found.setdefault(metric.name, metric) != metric:
                raise UsageError(
                    f"--metric {word}: the sweeps differ in which way is better; write {metric.name}:minimize"
                )
    return list(found.values())


def _only(arguments: argparse.Namespace, sources: Sequence[Source]) -> list[str]:
    """What `--trial` names.

    Raises:
        UsageError: for a trial that is not there, or where several sweeps are compared.
    """
    if not arguments.trial:
        return []
    if len(sources) > 1:
        raise UsageError("--trial names trials of one sweep, but several are compared")
    if len(arguments.trial) < 2:
        raise UsageError("--trial is given for each trial to compare, twice at least")
    [source] = sources
    return [trial_named(word, list(source.state.trials), source.name) for word in arguments.trial]


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH


def read_board(paths: SweepPaths, top: int | None = None) -> tuple[SweepState, Leaderboard]:
    """The folded ledger and its leaderboard, read only."""
    from sweeps.fold import fold
    from sweeps.leaderboard import leaderboard
    from sweeps.ledger import Ledger
    from sweeps.load import load_resolved

    loaded = load_resolved(paths.resolved_spec)
    ledger = Ledger.read(paths.root)
    try:
        state = fold(ledger.events())
        return state, leaderboard(state, ledger, loaded, also=loaded.also).head(top)
    finally:
        ledger.close()


def sweep_record(paths: SweepPaths, top: int | None = None) -> dict[str, Any]:
    """What `show --json` prints: the leaderboard, the metrics' cards, the soups and the folder."""
    from sweeps.board import to_json

    state, board = read_board(paths, top)
    soups = [
        {
            "id": soup.id,
            "method": soup.method,
            "metric": soup.metric,
            "ingredients": soup.ingredients,
            "decisions": soup.decisions,
            "finished": soup.finished,
            "folder": paths.placed(paths.soup(soup.id)) if soup.finished is not None else None,
        }
        for soup in state.soups.values()
    ]
    return {**to_json(board), "cards": _cards(paths), "soups": soups, "folder": paths.place}


def _cards(paths: SweepPaths) -> list[dict[str, Any]]:
    """The cards of the sweep's metrics."""
    from sweeps.cards import cards_of
    from sweeps.load import load_resolved

    return cards_of(load_resolved(paths.resolved_spec), paths.root.parent)


def print_sweep(paths: SweepPaths, top: int | None = None) -> None:
    """The leaderboard with its metrics' cards, each soup's story, the verdicts, and where to go from here."""
    from sweeps.board_text import to_text
    from sweeps.cards import card_line
    from sweeps.commands.story import final_lines, soup_lines

    state, board = read_board(paths, top)
    blocks = ["\n".join([to_text(board, _width()), *(card_line(card) for card in _cards(paths))])]
    blocks += ["\n".join(soup_lines(soup, paths.placed(paths.soup(soup.id)))) for soup in state.soups.values()]
    final = final_lines(board, _width())
    if final:
        blocks.append("\n".join(final))
    blocks.append(_next(paths, state))
    print("\n\n".join(blocks))


def _next(paths: SweepPaths, state: SweepState) -> str:
    from sweeps.driving import holder_of

    word = word_for(paths)
    failed = sum(bool(run.failures) for run in state.runs.values())
    lines = [f"folder: {paths.place}"]
    if failed:
        lines.append(f"why runs failed ({failed}): stockpot logs {word}")
    if holder_of(paths) is not None:
        lines.append(f"it is running: stockpot status {word} --watch")
    elif state.finished is None:
        lines.append(f"it is not finished: stockpot resume {word}")
    elif any(run.reports for run in state.runs.values()):
        lines.append(f"pair by pair: stockpot compare {word}")
    return "\n".join(lines)
