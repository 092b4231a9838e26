"""What can be decided, in words: the headline, and the sentences that stand under it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.board import Leaderboard, Measured, Row
from sweeps.board_text import score_text
from sweeps.commands.story import number, role, tuned_after, verdict_line
from sweeps.state import SweepState

NAMES = {"winner": "the best single model", "baseline": "the baseline", "soup": "the soup"}


def headline(state: SweepState, board: Leaderboard, phase: str) -> dict[str, Any]:
    """`title`, `tone` (decided | open | none) and `lines` of a sweep; JSON-ready.

    Where tuning went on after test had been opened, title and first line say so before everything else.

    Args:
        state: the folded ledger.
        board: its leaderboard.
        phase: as `Source.phase`.
    """
    found = _headline(state, board, phase)
    if not board.tuned_after:
        return found
    title = f"Test was opened before the tuning had ended. {found['title']}"
    return {**found, "title": title, "lines": [*tuned_after(board), *found["lines"]]}


def _headline(state: SweepState, board: Leaderboard, phase: str) -> dict[str, Any]:
    if phase == "empty":
        return {"title": "Nothing has been tried yet.", "tone": "none", "lines": []}
    primary = _primary(board)
    several = _several(board, list(dict.fromkeys(str(verdict["metric"]) for verdict in board.verdicts)))
    if several:
        lines = [
            "There is no single winner: no run of the front is better than another on every metric.",
            *_caveats(board),
        ]
        return {"title": _sentence(several[:2]), "tone": "decided", "lines": lines}
    if primary:
        said = [*(_said(verdict, board) for verdict in primary if verdict["left"] not in board.same), *_itself(board)]
        lines = [*_judged(board), *_differences(primary), *_caveats(board)]
        return {"title": _sentence(said), "tone": "decided", "lines": lines}
    lines = _best(board, state) + _caveats(board)
    title = {
        "finished": "The sweep is over; nothing was judged on test.",
        "running": _running(state, board),
        "stopped": f"Stopped after {_count(_tried(board), 'trial')}; it can be resumed.",
        "interrupted": f"Interrupted after {_count(_tried(board), 'trial')}; it can be resumed.",
    }[phase]
    if not any(row.rank is not None for row in board.trials):
        lines = _none(board) or lines
        if phase == "finished":
            title = "No trial has a result."
    return {"title": title, "tone": "open" if board.trials else "none", "lines": lines}


def _itself(board: Leaderboard) -> list[str]:
    """Said of a judged soup that is one run alone."""
    return [
        f"{_name(soup)} is {'that model' if single == 'winner' else _name(single)} itself, as nothing else could be mixed in without loss"
        for soup, single in board.same.items()
    ]


def better(verdict: Mapping[str, Any], board: Leaderboard) -> str:
    """`left`, `right` or `neither`, all verdicts of the sweep allowed for."""
    found = str(verdict.get("better") or "neither")
    adjusted = number(verdict.get("p_holm"))
    if board.tests > 1 and adjusted is not None and adjusted > board.alpha:
        return "neither"
    return found


def verdict_records(board: Leaderboard) -> list[dict[str, Any]]:
    """The verdicts with the words for each."""
    return [
        {
            **verdict,
            "left_name": _name(verdict["left"]),
            "right_name": _name(verdict["right"]),
            "decided": better(verdict, board),
            "words": _said(verdict, board),
            "line": verdict_line(verdict, board.tests, board.alpha),
        }
        for verdict in board.verdicts
    ]


def _primary(board: Leaderboard) -> list[Mapping[str, Any]]:
    """The verdicts that the headline is made of: winner against baseline, then each soup against the winner."""
    metrics = [verdict["metric"] for verdict in board.verdicts]
    wanted = f"test/{board.metric.partition('/')[2]}"
    metric = wanted if wanted in metrics else next(iter(metrics), None)
    mine = [verdict for verdict in board.verdicts if verdict["metric"] == metric]
    first = [v for v in mine if (v["left"], v["right"]) == ("winner", "baseline")]
    then = [v for v in mine if v["right"] in ("winner", "front-1")]
    return [*first, *then] or mine[:1]


def _several(board: Leaderboard, metrics: Sequence[str]) -> list[str]:
    """How the front's runs did against the baseline, a clause a metric; empty where there is a winner."""
    said = []
    for metric in metrics:
        mine = [v for v in board.verdicts if v["metric"] == metric and v["right"] == "baseline"]
        mine = [v for v in mine if str(v["left"]).startswith("front-")]
        won = sum(better(verdict, board) == "left" for verdict in mine)
        if mine:
            said.append(
                f"{won or 'none'} of the {_count(len(mine), 'judged model')} of the front beat the baseline on {metric}"
            )
    return said


def _said(verdict: Mapping[str, Any], board: Leaderboard) -> str:
    left, right = _name(verdict["left"]), _name(verdict["right"])
    if number(verdict.get("difference")) is None and verdict.get("better") in (None, "neither"):
        return f"{left} and {right} could not be compared"
    side = better(verdict, board)
    if side == "neither":
        return f"no difference is shown between {left} and {right}"
    return f"{left} beats {right}" if side == "left" else f"{left} is worse than {right}"


def _name(name: str) -> str:
    return NAMES.get(name, f"model {name}" if name.startswith("front-") else f"soup {role(name)}")


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "."


def _judged(board: Leaderboard) -> list[str]:
    """Every candidate's score on test, in one line."""
    rows = [row for row in board.rows if row.test is not None]
    if not rows:
        return []
    named = {"baseline": "baseline", "soup": "soup", "trial": "best single model"}
    kinds = ["baseline" if row.baseline else row.kind for row in rows]
    said = [f"{named[kind]} {score_text(row.test or Measured())}" for kind, row in zip(kinds, rows, strict=True)]
    metric = next((verdict["metric"] for verdict in board.verdicts), f"test/{board.metric.partition('/')[2]}")
    lower = "lower" if board.direction == "minimize" else "higher"
    return [f"On {metric} ({lower} is better): {', '.join(said)}."]


def _differences(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The differences with their intervals and p, in one line."""
    parts = []
    for verdict in verdicts:
        difference, low, high, p = (number(verdict.get(key)) for key in ("difference", "low", "high", "p_holm"))
        if difference is None:
            continue
        text = f"{role(verdict['left'])} minus {role(verdict['right'])} {_signed(difference)}"
        if low is not None and high is not None:
            text += f" (95 % from {_signed(low)} to {_signed(high)}"
            text += ")" if p is None else f", p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"
        parts.append(text)
    return [f"{parts[0][0].upper()}{'; '.join(parts)[1:]}."] if parts else []


def _signed(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _caveats(board: Leaderboard) -> list[str]:
    lines = []
    tests = board.tests
    if tests or board.test_openings:
        what = f"for {_count(tests, 'verdict')}" if tests else "and nothing was compared there"
        lines.append(f"Test was opened {_times(board.test_openings)} {what}.")
        if tests > 1:
            lines[-1] = lines[-1][:-1] + "; p-values are Holm's over all of them."
    if any(verdict.get("covers") == "data" for verdict in board.verdicts):
        lines.append("The intervals cover the choice of rows, not the luck of training.")
    for done in reversed(board.earlier):
        found = "; ".join(verdict_line(verdict, len(done.verdicts), board.alpha) for verdict in done.verdicts)
        lines.append(f"An earlier final step, after {_count(done.trials, 'trial')}: {found or 'no verdict'}.")
    return lines


def _best(board: Leaderboard, state: SweepState) -> list[str]:
    first = next((row for row in board.trials if row.rank == 1), None)
    if first is None:
        return []
    where = "at the end of its budget" if first.whole else f"at {first.rung}, not yet its whole budget"
    tied = sum(row.tie is True for row in board.trials)
    said = f"Best so far: {board.metric} {score_text(first.score)} ({first.name}, {where})"
    if tied:
        said += f"; {_count(tied, 'other trial')} can't be told from it"
    lines = [said + ".", "It was picked for its score on tune, so that it flatters itself; test decides."]
    return lines if state.finished is None else [lines[0].replace("Best so far", "Best"), lines[1]]


def _none(board: Leaderboard) -> list[str]:
    kinds: Counter[str] = Counter(row.reason for row in board.trials if row.state == "failed")
    if not kinds:
        return ["No result has been reported yet."]
    reason, times = kinds.most_common(1)[0]
    return [f"{_count(sum(kinds.values()), 'trial')} failed; most often ({times}): {reason[:300]}"]


def _running(state: SweepState, board: Leaderboard) -> str:
    running = sum(row.state == "running" for row in board.trials)
    if state.candidates:
        return "Running: the final step is judging on test."
    if any(soup.finished is None for soup in state.soups.values()):
        return "Running: the soup is being made."
    return f"Running: {_count(_tried(board), 'trial')} with a result, {running} at work."


def _tried(board: Leaderboard) -> int:
    return sum(_ended(row) for row in board.trials)


def _ended(row: Row) -> bool:
    return row.rank is not None or row.state in ("failed", "duplicate")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
