r"""The screen: an overview of a sweep drawn into so many columns and rows. Pure; `sweeps.terminal` puts it on a terminal.

A line is a tuple of (text, style); every text has gone through `clean`, and no line is longer than the width in cells.
From top to bottom: the sweep with its clock, the best run, the bar, the counts, the devices, a row for each run that fits,
the soup's and the final step's progress, what happened lately, a hint. What doesn't fit the height goes in reverse order.

Example:
    >>> lines = draw(overview(state, loaded, snapshot(state, loaded), (), at=now), 100, 30, now)
    >>> print(*map(plain, lines), sep="\\n")
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.base import Placement
from sweeps.glyphs import ASCII, UNICODE, Charset, Line, Part, bar, cells, clean, clip
from sweeps.overview import Overview, with_error
from sweeps.rows import table
from sweeps.words import age, duration, outlook, share_done

WIDEST = 200
QUIET_SECONDS = 60.0
"""So long without a report is told, and in yellow from half of `stall_after` on."""
LOWEST, NARROWEST = 4, 20
"""A smaller screen than this is drawn as if it had so many rows and columns, and cut."""
STATES = {
    "running": "cyan",
    "starting": "cyan",
    "stopping": "yellow",
    "soup": "magenta",
    "final": "magenta",
    "finished": "green",
    "stopped": "yellow",
    "interrupted": "red",
}
TITLES = {"soup": "making the soup", "final": "final step"}
TONES = {"plain": "", "good": "green", "bad": "yellow"}


def draw(view: Overview, width: int, height: int, now: float, charset: Charset = UNICODE) -> list[Line]:
    """The screen's lines: at most `height`, each at most `width` cells.

    Args:
        view: the sweep.
        width: of the screen, in cells.
        height: of the screen, in lines.
        now: seconds since the epoch, for the clocks.
        charset: what the terminal can show.
    """
    width = min(WIDEST, max(NARROWEST, width))
    height = max(LOWEST, height)
    head = _head(view, width, height, now, charset)
    foot: list[Line] = [((view.hint, "dim"),)] if view.hint and height >= 14 else []
    news = _news(view, height)
    steps = _steps(view, height - len(head) - len(news) - len(foot), charset)
    room = height - len(head) - len(steps) - len(news) - len(foot)
    space: list[Line] = [()] if height >= 20 else []
    rows = table(view, width, room - len(space) * (2 + bool(steps)), now, charset) if view.rows else []
    blocks = [head, rows, steps, [*news, *foot]]
    lines = [line for block in blocks if block for line in (*space, *block)][len(space) :]
    return [_finish(line, width, charset) for line in lines[:height]]


def plain(line: Line) -> str:
    """The line's text."""
    return "".join(text for text, _ in line)


def _finish(line: Line, width: int, charset: Charset) -> Line:
    """The line, cleaned and cut to the width; other characters than the terminal has are replaced."""
    finished: list[Part] = []
    left = width
    for text, style in line:
        shown = clean(text)
        if charset is ASCII:
            shown = _ascii(shown)
        shown = clip(shown, left, charset.cut)
        if shown:
            finished.append((shown, style))
        left -= cells(shown)
        if left <= 0:
            break
    return tuple(finished)


def _ascii(text: str) -> str:
    if text.isascii():
        return text
    for own, other in (("±", "+-"), ("–", "-"), ("·", "|"), ("…", "~")):
        text = text.replace(own, other)
    return text.encode("ascii", "replace").decode()


def _head(view: Overview, width: int, height: int, now: float, charset: Charset) -> list[Line]:
    lines = [_title(view, now), _best(view, charset), _bar(view, width, now, charset)]
    if height >= 7:
        lines.append(_counts(view, now))
    if height >= 14 and (devices := _devices(view, charset)):
        lines.append(devices)
    return lines


def _title(view: Overview, now: float) -> Line:
    shot = view.shot
    state = shot["state"]
    style = STATES.get(state, "")
    title: list[Part] = [(shot["name"], "bold"), ("  ", ""), (TITLES.get(state, state), style), ("  ", "")]
    spent = shot["seconds"] + (max(0.0, now - shot["updated_at"]) if _alive(view) else 0.0)
    title.append((duration(spent), ""))
    if state in ("running", "stopping"):
        title.append((f"  {outlook(shot, now)}", "bold"))
    return tuple(title)


def _alive(view: Overview) -> bool:
    return view.shot["state"] not in ("finished", "stopped", "interrupted")


def _best(view: Overview, charset: Charset) -> Line:
    found = view.shot["best"]
    arrow = charset.down if view.direction == "minimize" else charset.up
    if found is None:
        return (("best  ", "dim"), ("no result yet", ""))
    line: list[Part] = [("best  ", "dim"), (with_error(found["value"], found["se"]), "bold green")]
    line += [(f" {found['metric']} {arrow}", ""), (f"  {found['trial']} at {found['resource']}", "")]
    if found.get("front"):
        line.append((f"  front of {found['front']}", "magenta"))
    if view.parameters:
        line.append(("  " + "  ".join(f"{name} {value}" for name, value in view.parameters), "dim"))
    return tuple(line)


def _bar(view: Overview, width: int, now: float, charset: Charset) -> Line:
    shot = view.shot
    share = share_done(shot)
    if share is None:
        return (("done  ", "dim"), (f"{shot['resource']['done']:,} {shot['unit']}", ""))
    whole = shot["resource"]["done"] + shot["ahead"]
    told = f" {share:.0%} of {whole:,} {shot['unit']}"
    length = max(6, min(60, width - len(told) - 6))
    return (("done  ", "dim"), *bar(share, share, length, charset), (told, ""))


def _counts(view: Overview, now: float) -> Line:
    shot = view.shot
    trials = shot["trials"]
    total = "" if trials["total"] is None else f"/{trials['total']}"
    line: list[Part] = [("runs  ", "dim"), (f"{trials['tried']}{total} trials", "bold")]
    styles = {
        "running": "cyan",
        "unplaced": "yellow",
        "waiting": "",
        "finished": "green",
        "stopped": "dim",
        "failed": "red",
    }
    for phase, style in styles.items():
        count = trials.get(phase, 0)
        if count:
            line.append((f"  {count} {phase}", style))
    if kinds := shot.get("failures"):
        line.append((f"  ({', '.join(f'{kind} {n}' for kind, n in kinds.items())})", "red"))
    quiet = _quiet(view, now)
    if quiet is not None and quiet >= QUIET_SECONDS:
        late = quiet > shot.get("stall_after", float("inf")) / 2
        line.append((f"  quiet for {age(quiet)}", "yellow" if late else "dim"))
    return tuple(line)


def _quiet(view: Overview, now: float) -> float | None:
    """Seconds since the newest report or sign of life of a sweep at work."""
    heard = max(view.shot.get("reported_at") or 0.0, view.shot.get("moved_at") or 0.0)
    return max(0.0, now - heard) if heard and view.shot["state"] in ("running", "stopping") else None


def _devices(view: Overview, charset: Charset) -> Line:
    driver: dict[str, Any] = view.shot.get("devices") or {}
    slots, used = driver.get("slots"), view.shot["trials"]["running"]
    line: list[Part] = []
    if slots and view.shot["state"] in ("running", "stopping"):
        line.append(("slots ", "dim"))
        if slots <= 16:
            line += [(charset.slot * min(used, slots), "cyan"), (charset.free * max(0, slots - used), "dim"), (" ", "")]
        line.append((f"{min(used, slots)}/{slots} busy", ""))
        if driver.get("cpus"):
            has = Placement(slots, driver["cpus"], driver.get("gpus") or 0.0, driver.get("workers") or 1)
            line.append((f", {has.each} each", ""))
    if view.memory:
        line.append((("  " if line else "") + f"peak {_bytes(view.memory)} a run", ""))
    if view.gpus:
        line.append((f"  {view.gpus}", ""))
    return tuple(line)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _steps(view: Overview, room: int, charset: Charset) -> list[Line]:
    """The newest lines about the soup and the final step, in half of the room."""
    shown = view.steps[-max(1, room // 2) :] if view.steps and room > 0 else ()
    signs = {"+": "green", "-": "dim", "=": "magenta", ".": "dim"}
    return [((f"{sign} ", signs.get(sign, "")), (text, "dim" if sign in "-." else "")) for sign, text in shown]


def _news(view: Overview, height: int) -> list[Line]:
    count = 0 if height < 16 else 3 if height < 32 else 6
    items: Sequence[Any] = view.news[-count:] if count else ()
    return [
        ((time.strftime("%H:%M:%S ", time.localtime(item.time)), "dim"), (item.text, TONES[item.tone]))
        for item in items
    ]
