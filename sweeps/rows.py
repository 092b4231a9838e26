"""The screen's table: a row a run, with as many columns as the width has room for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
}
GAP = 2
"""Cells between columns."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: its head.
        width: cells.
        rank: columns of a low rank come first where there is room; rank 0 is always there.
        cell: a row's text.
        right: whether it is set to the right.
        style: of its cells; `phase` takes the phase's.
        live: whether a row that failed has it too; the others give their place to the reason.
    """

    title: str
    width: int
    rank: int
    cell: Callable[[Row], str]
    right: bool = False
    style: str = ""
    live: bool = False


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
    metric = view.shot["metric"]
    arrow = charset.down if view.direction == "minimize" else charset.up
    most = max((len(row.series) for row in rows), default=0)
    losses = max((len(row.losses) for row in rows), default=0)
    spark = max(8, min(24, most, width // 6))
    curve = max(10, min(24, losses, width // 6))
    digits = max((len(f"{row.total:,}") for row in rows), default=1)
    name = max((cells(row.short) for row in rows), default=4)
    low, high = bounds([value for row in rows for value in row.series])
    floor, ceiling = bounds([value for row in rows for value in row.losses])
    named = f"{clean(metric).rpartition('/')[2]} {arrow}"
    loss = Column(
        "train loss", curve, 5, lambda row: sparkline(row.losses, curve, floor, ceiling, charset), style="dim"
    )
    tries = Column("tries", 5, 8, lambda row: f"{row.tries + 1}" if row.tries else "", right=True, style="yellow")
    every = [
        Column("run", max(3, name), 0, lambda row: row.short, style="name", live=True),
        Column(
            "state",
            11 if any(row.phase == "interrupted" for row in rows) else 8,
            0,
            lambda row: row.phase,
            style="phase",
            live=True,
        ),
        Column(
            "",
            10,
            1,
            lambda row: bar(row.done / row.total, row.target / row.total, 10, charset),
            style="cyan",
            live=True,
        ),
        Column(
            view.shot["unit"],
            max(2 * digits + 1, 5),
            0,
            lambda row: f"{row.done:,}/{row.total:,}",
            right=True,
            live=True,
        ),
        Column(
            named,
            max(spark, min(14, cells(named))),
            2,
            lambda row: sparkline(row.series, spark, low, high, charset),
            style="trend",
        ),
        Column("value", 16, 0, lambda row: _value(row, charset), style="value"),
        *([loss] if losses > 1 else []),
        Column("speed", 8, 4, _speed(view), right=True),
        Column("time", 8, 3, lambda row: duration(row.seconds), right=True),
        Column(
            "ago", 6, 6, lambda row: age(now - row.heard) if row.phase == "running" else "", right=True, style="dim"
        ),
        *([tries] if any(row.tries for row in rows) else []),
        Column("parameters", 20, 7, lambda row: "  ".join(f"{k} {v}" for k, v in row.parameters), style="dim"),
    ]
    taken: set[int] = set()
    left = width - GAP
    for column in sorted(every, key=lambda column: column.rank):
        if column.width + GAP <= left:
            taken.add(id(column))
            left -= column.width + GAP
        elif column.rank > 0:
            break
    return [_widened(column, left) for column in every if id(column) in taken]


def _widened(column: Column, left: int) -> Column:
    """The last column takes what is left over."""
    if column.title != "parameters":
        return column
    return Column(column.title, column.width + left, column.rank, column.cell, style=column.style)


def _row(row: Row, columns: Sequence[Column], width: int, charset: Charset) -> Line:
    mark = charset.best if row.best else charset.runs if row.phase == "running" else " "
    line: list[Part] = [(f"{mark} ", "bold green" if row.best else "cyan")]
    used = 2
    for column in columns:
        if row.phase == "failed" and not column.live:
            line.append((clip(clean(row.reason), width - used, charset.cut), "red"))
            break
        text = fit(clean(column.cell(row)), column.width, charset.cut, right=column.right)
        line.append((text + " " * GAP, _style(column, row)))
        used += column.width + GAP
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


def _speed(view: Overview) -> Callable[[Row], str]:
    """Tokens a second where they are counted, else units of the resource."""

    def speed(row: Row) -> str:
        if row.speed is None:
            return "-"
        return f"{row.speed:,.0f}/s" if row.speed >= 10 else f"{row.speed:.2g}/s"

    return speed
