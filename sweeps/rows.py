"""The screen's table: a row a run, with as many columns as the width has room for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sweeps.glyphs import Charset, Line, Part, bar, bounds, cells, clean, clip, fit, sparkline
from sweeps.overview import Overview, Row
from sweeps.words import age, duration

PHASES = {
    "running": "cyan",
    "waiting": "",
    "finished": "green",
    "stopped": "dim",
    "failed": "red",
    "interrupted": "yellow",
    "unplaced": "yellow",
}
GAP = 2
"""Cells between columns."""
BAR = 10
WIDEST_CURVE = 24
LAST = 11
"""Place of the last column."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        place: from the left.
        title: its head.
        width: cells.
        rank: columns of a low rank come first where there is room; rank 0 is always there.
        cell: a row's text, or a line of exactly `width` cells.
        right: whether it is set to the right.
        style: of its cells; `phase`, `name`, `value` and `trend` go by the row.
        stays: whether a row that failed has it too; the others give their place to the reason.
    """

    place: int
    title: str
    width: int
    rank: int
    cell: Callable[[Row], str | Line]
    right: bool = False
    style: str = ""
    stays: bool = False


def table(view: Overview, width: int, room: int, now: float, charset: Charset) -> list[Line]:
    """Head, rows and a line that counts the rest: at most `room` lines, each at most `width` cells."""
    if room < 1:
        return []
    headed = room >= 5
    space = room - (1 if headed else 0)
    total = sum(view.phases.values())
    folded = total > min(space, len(view.rows))
    shown = sorted(view.rows[: max(0, space - 1) if folded else space], key=lambda row: row.group)
    columns = _columns(view, shown, width, now, charset)
    lines: list[Line] = []
    if headed:
        head = (" " * GAP).join(fit(column.title, column.width, charset.cut, right=column.right) for column in columns)
        lines.append((("  ", ""), (head.rstrip(), "dim")))
    lines += [_row(row, columns, width, charset) for row in shown]
    if folded:
        lines.append(_rest(view, shown, charset))
    return lines


def _rest(view: Overview, shown: Sequence[Row], charset: Charset) -> Line:
    left = Counter(dict(view.phases))
    left.subtract(Counter(row.phase for row in shown))
    told = ", ".join(f"{left[phase]} {phase}" for phase in PHASES if left[phase] > 0)
    return ((f"{charset.cut} {sum(left.values())} more: {told}", "dim"),)


def _columns(view: Overview, rows: Sequence[Row], width: int, now: float, charset: Charset) -> list[Column]:
    """The columns that fit, in their places."""
    every = [*_standing(view, rows, charset), *_curves(view, rows, width, charset), *_costs(view, rows, now)]
    taken: set[int] = set()
    left = width - GAP
    for column in sorted(every, key=lambda column: column.rank):
        if column.width + GAP <= left:
            taken.add(column.place)
            left -= column.width + GAP
        elif column.rank > 0:
            break
    chosen = sorted((column for column in every if column.place in taken), key=lambda column: column.place)
    return [_widened(column, left) for column in chosen]


def _standing(view: Overview, rows: Sequence[Row], charset: Charset) -> list[Column]:
    """Which run, what it does, and how far it is."""
    name = max([3, *(cells(row.short) for row in rows)])
    state = max(8, *(len(row.phase) for row in rows)) if rows else 8
    unit = view.shot["unit"]
    far = [f"{row.done:,}/{row.total:,}" for row in rows]
    return [
        Column(0, "run", name, 0, lambda row: row.short, style="name", stays=True),
        Column(1, "state", state, 0, lambda row: row.phase, style="phase", stays=True),
        Column(2, "", BAR, 1, lambda row: bar(row.done / row.total, row.target / row.total, BAR, charset), stays=True),
        Column(
            3, unit, max(map(len, [unit, *far])), 0, lambda row: f"{row.done:,}/{row.total:,}", right=True, stays=True
        ),
    ]


def _curves(view: Overview, rows: Sequence[Row], width: int, charset: Charset) -> list[Column]:
    """The metric and the training loss, each on one scale for all rows."""
    most = max((len(row.series) for row in rows), default=0)
    losses = max((len(row.losses) for row in rows), default=0)
    low, high = bounds([value for row in rows for value in row.series])
    floor, ceiling = bounds([value for row in rows for value in row.losses])
    arrow = charset.down if view.direction == "minimize" else charset.up
    title = clip(f"{clean(view.shot['metric']).rpartition('/')[2]} {arrow}", 14, charset.cut)
    spark = max(8, cells(title), min(WIDEST_CURVE, most, width // 6))
    curve = max(10, min(WIDEST_CURVE, losses, width // 6))
    columns = [
        Column(4, title, spark, 2, lambda row: sparkline(row.series, spark, low, high, charset), style="trend"),
        Column(5, "value", 16, 0, lambda row: _value(row, charset), style="value"),
    ]
    if losses > 1:
        columns.append(
            Column(
                6,
                "train loss",
                curve,
                5,
                lambda row: sparkline(row.losses, curve, floor, ceiling, charset),
                style="dim",
            )
        )
    return columns


def _costs(view: Overview, rows: Sequence[Row], now: float) -> list[Column]:
    """Speed, time, tries, and what was tried."""
    speed = f"{next((row.counted for row in rows if row.counted), view.shot['unit'])}/s"
    quiet = Column(9, "ago", 6, 6, lambda row: age(now - row.heard) if row.phase == "running" else "", right=True)
    tries = Column(10, "tries", 5, 8, lambda row: f"{row.tries + 1}" if row.tries else "", right=True, style="yellow")
    return [
        Column(7, speed, max(8, len(speed)), 4, _speed, right=True),
        Column(8, "time", 8, 3, lambda row: duration(row.seconds), right=True),
        *([quiet] if any(row.phase == "running" for row in rows) else []),
        *([tries] if any(row.tries and row.phase != "failed" for row in rows) else []),
        Column(LAST, "parameters", 20, 7, lambda row: "  ".join(f"{k} {v}" for k, v in row.parameters), style="dim"),
    ]


def _widened(column: Column, left: int) -> Column:
    """The last column takes what is left over."""
    return replace(column, width=column.width + left) if column.place == LAST else column


def _row(row: Row, columns: Sequence[Column], width: int, charset: Charset) -> Line:
    mark = charset.best if row.best else charset.runs if row.phase == "running" else " "
    line: list[Part] = [(f"{mark} ", "bold green" if row.best else "cyan")]
    used = 2
    for column in columns:
        if row.phase == "failed" and not column.stays:
            line.append((clip(clean(row.reason), width - used, charset.cut), "red"))
            break
        made = column.cell(row)
        if isinstance(made, str):
            line.append((fit(clean(made), column.width, charset.cut, right=column.right), _style(column, row)))
        else:
            line += made
        line.append((" " * GAP, ""))
        used += column.width + GAP
    while line and not line[-1][0].strip():
        line.pop()
    text, style = line[-1]
    return (*line[:-1], (text.rstrip(), style))


def _style(column: Column, row: Row) -> str:
    if column.style == "phase":
        return PHASES.get(row.phase, "")
    quiet = row.phase in ("stopped", "failed")
    if column.style in ("name", "value"):
        return "bold" if row.best else "dim" if quiet else ""
    if column.style == "trend":
        return "bold green" if row.best else "dim" if quiet else "green"
    return column.style or ("dim" if quiet else "")


def _value(row: Row, charset: Charset) -> str:
    if row.value is None:
        return charset.gap if row.series and math.isnan(row.series[-1]) else "-"
    if row.se is None:
        return f"{row.value:.4g}"
    return f"{row.value:.4g} {charset.error} {row.se:.2g}"


def _speed(row: Row) -> str:
    """Of what the column's title says, a second."""
    if row.speed is None:
        return "-"
    return f"{row.speed:,.0f}" if row.speed >= 10 else f"{row.speed:.2g}"
