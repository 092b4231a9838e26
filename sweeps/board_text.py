"""The leaderboard as a text table for people. A number that is not there is `-`."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.board import Leaderboard, Measured, Row

WIDTH = 120
GAP = "  "
REASON_WIDTH = 24
"""The reason's column is at least this wide; where there is less room it is left out."""
REASONS_APART = 8
"""So many rows have their reasons in a line each below the table; of more, those with one reason share a line."""
SETTINGS_BELOW = 5
"""Trials whose settings stand below the table where their columns do not fit."""
LATENCY = "latency"
"""Telemetry of RAG configurations: mean seconds a question, as they were when its calls were computed."""
LATENCY_TITLE = "s/question"
PER_QUESTION = ("tokens", "price")
ENERGY = ("joules", "co2_grams")
ESTIMATED = "estimated_joules"


def to_text(board: Leaderboard, width: int = WIDTH) -> str:
    """An aligned table for people, at most `width` columns wide as far as it can be.

    Columns that do not fit are left out, the least telling first, and named in a last line; reasons, and the best trials'
    settings, then stand below.
    """
    searched = sum(not row.baseline for row in board.trials)
    counts = [f"{searched} trials{' and the baseline' * (searched < len(board.trials))}"]
    for state in ("running", "waiting", "failed"):
        here = sum(row.state == state for row in board.trials)
        counts += [f"{here} {state}"] if here else []
    metrics = [(metric.name, metric.direction) for metric in board.metrics] or [(board.metric, board.direction)]
    aims = [f"{name} ({'lower' if direction == 'minimize' else 'higher'} is better)" for name, direction in metrics]
    lines = [f"{board.sweep}: {', '.join([*aims, *counts])}"]
    if board.rows:
        columns, dropped = _fitting(_columns(board), board.rows, width)
        lines += aligned([c.title for c in columns], [[c.cell(row) for c in columns] for row in board.rows], width)
        if any(column.axis for column in _columns(board) if column.title in dropped):
            lines += [line for row in board.trials[:SETTINGS_BELOW] for line in _settings(row, width)]
        if "reason" in dropped:
            lines += _reasons(board.rows, width)
        lines += _ties(board)
        if any(column.title == LATENCY_TITLE for column in columns):
            said = f"{LATENCY_TITLE}: median (95 % within), probed without the memo; ~ mean of stored times"
            shared = [column.title for column in columns if column.title in PER_QUESTION]
            lines.append(said + (f"; {' and '.join(shared)}: of a question" if shared else ""))
        shown = [column.title for column in columns if column.title in ENERGY]
        if any(_cost(row, name).startswith("~") for row in board.rows for name in shown):
            lines.append("~ of joules and CO2: an estimate from the watts that the file states, not measured")
        lines += board.front.lines() if board.front is not None else []
        dropped = [title for title in dropped if title != "reason"]
        if dropped:
            lines.append(f"left out for width: {', '.join(dropped)} (--json and --csv have them)")
    return "\n".join(lines)


def score_text(score: Measured) -> str:
    """`0.412 ± 0.011`: the error to two digits, the score to as many; `-` where it is unknown."""
    value, se = score.value, score.se
    if math.isnan(value):
        return "-"
    if not math.isfinite(se) or se <= 0 or not math.isfinite(value):
        said = f"{value:.4g}"
        if score.n is None or not math.isfinite(value):
            return said
        return f"{said} ± {'-' if math.isnan(se) else f'{se:g}'}"
    digits = min(8, max(0, 1 - math.floor(math.log10(se))))
    return f"{value:.{digits}f} ± {se:.{digits}f}" if abs(value) < 1e7 else f"{value:.4g} ± {se:.2g}"


def aligned(titles: Sequence[str], cells: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of a table: numbers to the right, words to the left; the last column is cut to `width`."""
    table = [list(titles), *([cell or "-" for cell in row] for row in cells)]
    widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
    numeric = [all(row[i] == "-" or _is_number(row[i]) for row in table[1:]) for i in range(len(titles))]
    lines = []
    for row in table:
        padded = [cell.rjust(w) if n else cell.ljust(w) for cell, w, n in zip(row, widths, numeric, strict=True)]
        lines.append(cut(GAP.join(padded).rstrip(), width))
    return lines


def cut(text: str, width: int | None) -> str:
    """The text, its end replaced by `…` where it is longer than `width`."""
    return text if width is None or len(text) <= width else text[: max(0, width - 1)].rstrip() + "…"


@dataclass(frozen=True)
class _Column:
    """A column of the text; the highest `drop` is left out first, 0 never. An `axis` is one of the parameters."""

    title: str
    cell: Callable[[Row], str]
    drop: int = 0
    axis: bool = False


def _columns(board: Leaderboard) -> list[_Column]:
    rows = board.rows
    columns = [
        _Column("#", lambda row: "" if row.rank is None else f"{row.rank}{'=' if row.tie else ''}"),
        _Column("trial", lambda row: f"{row.name} (baseline)" if row.baseline else row.name),
        _Column("rung", lambda row: _text(row.rung)),
        _Column(board.metric, lambda row: score_text(row.score)),
        _Column("n", lambda row: _n(row.score), 2),
    ]
    if board.others:
        columns[1:1] = [_Column("front", lambda row: f"{_text(row.front)}{'?' if row.possible else ''}")]
    for metric in board.others:
        name = metric.name
        columns.append(_Column(name, lambda row, name=name: score_text(row.scores.get(name, Measured()))))  # type: ignore[misc]
        if any(row.scores and _n(row.scores[name]) not in ("", _n(row.score)) for row in rows):
            title = f"n of {metric.bare}"
            columns.append(_Column(title, lambda row, name=name: _n(row.scores.get(name, Measured())), 2))  # type: ignore[misc]
    if any(row.test is not None for row in rows):
        columns.append(_Column("test", lambda row: score_text(row.test or Measured())))
    for name in dict.fromkeys(name for row in rows for name in row.tests if name.partition("/")[2] != _bare(board)):
        columns.append(_Column(name, lambda row, name=name: score_text(row.tests.get(name, Measured()))))  # type: ignore[misc]
    for name in board.also:
        title = f"{name.partition('/')[2]}{_n_of(rows, name)}"
        columns.append(_Column(title, lambda row, name=name: score_text(row.also.get(name, Measured())), 1))  # type: ignore[misc]
    if board.trainable_differs:
        columns.append(_Column("trainable", lambda row: _text(row.trainable), 1))
    columns += [_Column("resource", lambda row: _text(row.resource), 5), _Column("seconds", _seconds, 4)]
    costs = {name for row in rows for name in row.cost} - {metric.bare for metric in board.metrics}
    if LATENCY in costs or any(row.latency for row in rows):
        columns.append(_Column(LATENCY_TITLE, _latency, 1))
        columns += [_Column(name, _per_question(name), 1) for name in PER_QUESTION if _any(rows, name)]
        costs -= {LATENCY, *PER_QUESTION}
    costs -= {ESTIMATED, *(name for name in ENERGY if not any(_text(row.cost.get(name)) for row in rows))}
    columns += [_Column(name, lambda row, name=name: _cost(row, name), 6) for name in sorted(costs)]  # type: ignore[misc]
    if any(len(row.seeds) > 1 for row in rows):
        columns.append(_Column("seeds", lambda row: str(len(row.seeds)) if row.seeds else "", 5))
    columns.append(_Column("state", lambda row: row.state))
    axes = list(dict.fromkeys(path for row in rows for path in row.parameters))
    ends = [path.rpartition(".")[2] for path in axes]
    for i, (path, end) in enumerate(zip(axes, ends, strict=True)):
        title = end if ends.count(end) == 1 else path
        columns.append(_Column(title, lambda row, path=path: _text(row.parameters.get(path)), 1 if i < 3 else 3, True))  # type: ignore[misc]
    if any(_reason(row) for row in rows):
        columns.append(_Column("reason", _reason, 2))
    return columns


def _settings(row: Row, width: int) -> list[str]:
    """A trial's parameters by their paths, in as many lines as they need."""
    told = ", ".join(f"{path} {_text(value)}" for path, value in row.parameters.items() if value is not None)
    return _wrapped(f"{row.name}: {told}", width)


def _reasons(rows: Sequence[Row], width: int) -> list[str]:
    """Why each row stands where it does; of many rows, those with one reason together."""
    told = [(row.name, _reason(row)) for row in rows if _reason(row)]
    if len(told) <= REASONS_APART:
        return [cut(f"{name}: {reason}", width) for name, reason in told]
    names: dict[str, list[str]] = {}
    for name, reason in told:
        names.setdefault(reason, []).append(name)
    return [line for reason, who in names.items() for line in _wrapped(f"{reason}: {', '.join(who)}", width)]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), subsequent_indent="  ", break_on_hyphens=False)


def _n_of(rows: Sequence[Row], name: str) -> str:
    """` (n=40)`, where every row has it of as many items."""
    counts = {row.also[name].n for row in rows if name in row.also}
    return f" (n={counts.pop()})" if len(counts) == 1 else ""


def _latency(row: Row) -> str:
    """Median and 95th percentile where it was probed; else the stored mean, marked."""
    if row.latency is not None and row.latency.get("p50") is not None:
        return f"{row.latency['p50']:.2g} ({row.latency['p95']:.2g})"
    value = row.cost.get(LATENCY)
    return "" if value is None else f"~{value:.2g}"


def _per_question(name: str) -> Callable[[Row], str]:
    return lambda row: _text(row.cost.get(name))


def _cost(row: Row, name: str) -> str:
    """A cost; energy that comes in part from watts which the file states is marked."""
    text = _text(row.cost.get(name))
    return f"~{text}" if text and name in ENERGY and row.cost.get(ESTIMATED) else text


def _any(rows: Sequence[Row], name: str) -> bool:
    return any(row.cost.get(name) for row in rows)


def _fitting(columns: list[_Column], rows: Sequence[Row], width: int) -> tuple[list[_Column], list[str]]:
    """The columns that fit, and the titles of those that do not."""
    widths = {c.title: max(len(c.title), *(len(c.cell(row)) or 1 for row in rows)) for c in columns}
    if "reason" in widths:
        widths["reason"] = min(widths["reason"], REASON_WIDTH)
    kept, dropped = list(columns), []
    while sum(widths[c.title] + len(GAP) for c in kept) - len(GAP) > width and any(c.drop for c in kept):
        last = max(reversed(kept), key=lambda c: c.drop)
        kept.remove(last)
        dropped.append(last.title)
    return kept, [c.title for c in columns if c.title in dropped]


def _ties(board: Leaderboard) -> list[str]:
    if not board.compared:
        return []
    first = next(row for row in board.trials if row.rank == 1)
    where = f" on {board.metric}" if board.others else ""
    how = f"paired on stored items at rung {first.rung}, Holm over {board.compared}, α = {board.alpha:g}"
    if board.tied:
        return [f"= can't be told from the first{where} ({how})"]
    return [f"the first is better{where} than each of the {board.compared} compared with it ({how})"]


def _n(score: Measured) -> str:
    if score.n is None:
        return ""
    return str(score.n) + (f" (-{score.unscored})" if score.unscored else "")


def _bare(board: Leaderboard) -> str:
    return board.metric.partition("/")[2]


def _seconds(row: Row) -> str:
    return "" if math.isnan(row.seconds) else f"{row.seconds:.1f}" if row.seconds < 100 else f"{row.seconds:.0f}"


def _reason(row: Row) -> str:
    said = [row.reason] if row.reason else []
    said += [f"{key} = {_text(value)}" for key, value in row.changes.items()]
    return " ".join("; ".join(said).split())


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 28)


def _is_number(text: str) -> bool:
    try:
        float(text.partition(" ")[0].strip("=~"))
    except ValueError:
        return False
    return True
