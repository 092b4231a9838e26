"""A soup's story and the final step's verdicts in plain words, from the folded ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.trial import finite

if TYPE_CHECKING:
    from sweeps.board import Interval, Leaderboard
    from sweeps.state import SoupState

VERDICT_WORDS = {"left": "{left} is better", "right": "{right} is better", "neither": "no difference shown"}
ROLES = {"winner": "best single", "baseline": "baseline"}


def soup_lines(soup: SoupState, folder: Path | str) -> list[str]:
    """What a soup was made of, one line a decision."""
    top = f"soup {soup.id}: {soup.method} {soup.over}, chosen on {soup.metric}"
    lines = [top]
    for decision in soup.decisions:
        score, best = number(decision.get("score")), number(decision.get("best"))
        said = f"  {decision['decision']:<7} {decision['run']}"
        if score is not None:
            said += f"  {score:.4g}"
            if best is not None and decision["decision"] != "start":
                said += f" (best so far {best:.4g})"
        lines.append(said + (f"  {decision['reason']}" if decision.get("reason") else ""))
    if soup.finished is None:
        lines.append("  not finished: `stockpot resume` goes on with it")
        return lines
    if not soup.finished.get("folder"):
        lines.append(f"  no soup: {soup.finished.get('reason') or 'none could be made'}")
        return lines
    inside = soup.finished.get("ingredients") or ()
    if inside:
        lines.append(f"  in it   {', '.join(_parts(inside))}")
    lines += [*_made(soup), *_alike(soup)]
    lines.append(f"  folder  {folder}")
    if len(inside) > 1:
        lines.append(f"  {soup.metric} chose it, so its score there flatters it; `final step` below has what counts")
    return lines


def _parts(inside: Sequence[Any]) -> list[str]:
    """Runs, with their weights where these differ."""
    weights = [entry[1] for entry in inside if isinstance(entry, list | tuple)]
    if len(set(weights)) < 2:
        return [_run_name(entry) for entry in inside]
    return [f"{_run_name(entry)} ({weight:.3g})" for entry, weight in zip(inside, weights, strict=True)]


def _made(soup: SoupState) -> list[str]:
    """How it was merged, what was found on the way, and what an adapter was compacted to."""
    done, lines = soup.finished or {}, []
    method = dict(done.get("method") or {})
    kind = method.pop("type", "average")
    method.pop("coefficients", None)
    if kind != "average":
        lines.append(f"  merged  {', '.join([kind, *(f'{key} {value}' for key, value in method.items())])}")
    for note in soup.notes:
        if note["what"] == "toward_base":
            taken = note["taken"]
            said = f"{taken:g} of the way from the base is better" if taken < 1 else "no step toward it is better"
            lines.append(f"  base    {said}, of {len(note['knots'])} points")
        elif note["what"] == "search":
            failed = f", {note['failed']} of them failed" if note["failed"] else ""
            lines.append(f"  search  {note['evaluations']} mixtures in {note['generations']} generations{failed}")
        elif note["what"] == "learned":
            losses = note["losses"]
            lines.append(
                f"  learned {note['epochs']} epochs, loss {losses[0]:.4g} to {min(losses):.4g} on what it learned from"
            )
    paths = [note for note in soup.notes if note["what"] == "path"]
    if paths:
        behind = sum(not note["passes"] for note in paths)
        lines.append(f"  paths   {len(paths)} looked at, {behind or 'none'} with a barrier")
    made = done.get("made") or {}
    if (made.get("residual") or 0.0) > 1e-6:
        lines.append(f"  compact rank {made['rank']}, {made['residual']:.2g} of the change is lost")
    if "sparsity" in made:
        before, after = (f"{made['sparsity'][when]:.4f}" for when in ("before", "after"))
        lines.append(f"  sparse  {before} of the weights zero before, {after} after, mask {made['mask'][:12]}")
    return lines


def _alike(soup: SoupState) -> list[str]:
    """How alike the changes of the ingredients are, and which two are the least alike."""
    answers = [body["answer"] for body in soup.answers if body["question"] == "cosines"]
    if not answers or "missing" in answers[-1]:
        return []
    found = answers[-1]
    pairs = [
        (value, found["runs"][row], found["runs"][column])
        for row, values in enumerate(found["cosines"])
        for column, value in enumerate(values[:row])
        if value is not None
    ]
    if not pairs:
        return []
    (low, *least), high = min(pairs), max(pairs)[0]
    said = f"cosine of the changes {low:.2f}"
    if len(pairs) > 1:
        said = f"cosines of the changes {low:.2f} to {high:.2f}, the least alike {least[1]} and {least[0]}"
    return [f"  deltas  {said}; norms {min(found['norms']):.3g} to {max(found['norms']):.3g}"]


def _run_name(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return str(entry.get("run"))
    return str(entry[0] if isinstance(entry, list | tuple) else entry)


def verdict_line(verdict: Mapping[str, Any], tests: int = 1, alpha: float = 0.05) -> str:
    """`soup - best single on test/loss: -0.012 ± 0.020 (95 %), p = 0.24, n=60: no difference shown`.

    Args:
        verdict: as the ledger has it, with `p_holm` where several were made.
        tests: how many were made; Holm's p then decides.
        alpha: its level.
    """
    left, right = role(verdict["left"]), role(verdict["right"])
    difference, low, high = (number(verdict.get(key)) for key in ("difference", "low", "high"))
    head = f"{left} - {right} on {verdict['metric']}: "
    if difference is None:
        return head + "nothing could be compared"
    text = head + f"{difference:+.3g}"
    if low is not None and high is not None:
        text += f" ± {(high - low) / 2:.2g} (95 %)"
    if verdict["metric"].endswith("/perplexity"):
        text += " in nats, the logarithm's scale"
    p = number(verdict.get("p"))
    text += f", p = {p:.2g}, n={verdict['n']}: " if p is not None else f", n={verdict['n']}: "
    better, adjusted = verdict.get("better") or "neither", number(verdict.get("p_holm"))
    if better != "neither" and tests > 1 and adjusted is not None and adjusted > alpha:
        return text + f"no difference shown once {tests} verdicts are allowed for (Holm p = {adjusted:.2g})"
    return text + VERDICT_WORDS[better].format(left=left, right=right)


def role(name: str) -> str:
    """How a candidate's role is called in a sentence."""
    return ROLES.get(name, name)


def final_lines(board: Leaderboard, width: int | None = None) -> list[str]:
    """Scores on `test` of every candidate, the verdicts, and how often test was opened.

    Args:
        board: the leaderboard.
        width: columns that the table of scores may take; a wider one has a line a metric instead of one a candidate.
    """
    lines = [*tuned_after(board), *_scores(board.finals, width), *gap_lines(board, width)]
    if any(str(final["role"]).startswith("front-") for final in board.finals):
        lines.append("there is no single winner: no run of the front is better than another on every metric")
    lines += [verdict_line(verdict, board.tests, board.alpha) for verdict in board.verdicts]
    lines += [
        f"{role(soup)} = {role(single)}: nothing else could be mixed in without loss, so it has no verdict of its own"
        for soup, single in board.same.items()
    ]
    lines += [f"  note: {note}" for note in dict.fromkeys(v.get("note") for v in board.verdicts) if note]
    if any(verdict.get("covers") == "data" for verdict in board.verdicts):
        lines.append("the intervals cover the choice of rows, not the luck of training (`seeds.test` repeats training)")
    if board.test_openings > 1:
        lines.append(
            f"test was opened {board.test_openings} times for {board.tests} verdicts: the more often, the less each one "
            "means"
        )
    return [*lines, *earlier_lines(board)]


def tuned_after(board: Leaderboard) -> list[str]:
    """A warning where tuning went on after `test` had been opened; empty where it did not."""
    if not board.tuned_after:
        return []
    reports = "1 report" if board.tuned_after == 1 else f"{board.tuned_after} reports"
    return [
        f"WARNING: tuning went on after test was first opened ({reports} of trials came in since): whoever saw test may have "
        "led what was tuned later, and test is no fair judge of it any more"
    ]


def gap_lines(board: Leaderboard, width: int | None = None) -> list[str]:
    """What chose each candidate beside what it is worth on test, with intervals, and how these are made."""
    from sweeps.board_text import aligned

    if not board.gaps:
        return []
    percent = f"{100 * (1 - board.alpha):g} %"
    rows = []
    for gap in board.gaps:
        half = (gap.worse.high - gap.worse.low) / 2
        rows.append(
            [
                role(gap.role) + (f" {gap.name}" if gap.role.startswith("front-") else ""),
                f"{gap.chosen_on} {_spread(gap.tuned)}",
                str(len(gap.tuned.seeds) or 1),
                _spread(gap.tested),
                str(len(gap.tested.seeds) or 1),
                f"{gap.worse.value:+.3g}" + (f" ± {half:.2g}" if math.isfinite(half) else ""),
            ]
        )
    head = ["chosen and tested", f"chosen by ({percent})", "seeds", f"test ({percent})", "seeds", "worse on test by"]
    return [
        *aligned(head, rows, width),
        "these intervals cover the rows (clustered) and the training seeds, where there are several: Student's t",
    ]


def _spread(one: Interval) -> str:
    """`5.287 (5.272 to 5.301)`, to as many digits as the error has; a value whose error is unknown stands alone."""
    if not math.isfinite(one.se):
        return f"{one.value:.4g}"
    digits = min(8, max(0, 1 - math.floor(math.log10(one.se)))) if one.se > 0 else 4
    return f"{one.value:.{digits}f} ({one.low:.{digits}f} to {one.high:.{digits}f})"


def earlier_lines(board: Leaderboard) -> list[str]:
    """What final steps found before the sweep was given another budget, the newest first."""
    lines = []
    for done in reversed(board.earlier):
        lines.append(f"an earlier final step, after {done.trials} trials, of what was best by then:")
        lines += [f"  {verdict_line(verdict, len(done.verdicts), board.alpha)}" for verdict in done.verdicts]
        if not done.verdicts:
            lines.append("  it did not come to a verdict")
    return lines


def _scores(finals: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    """One line a candidate and one column a metric, or the other way round where that is too wide."""
    from sweeps.board import Measured
    from sweeps.board_text import aligned, score_text
    from sweeps.candidates import tuned_seed

    if not finals:
        return []
    keys = list(dict.fromkeys(key for final in finals for key in final["scores"]))
    rows = []
    for final in finals:
        tuned, tested = tuned_seed(final), final.get("seed")
        seed = f" (tuning seed {tuned})" if tuned is not None else "" if tested is None else f" (seed {tested})"
        scores = [final["scores"].get(key) for key in keys]
        cells = [score_text(Measured(s.value, s.se, s.n)) if s is not None else "" for s in scores]
        run = (final.get("candidate") or {}).get("run") if str(final["role"]).startswith("front-") else None
        trial = f" {str(run).partition('/')[0]}" if run else ""
        rows.append([role(final["role"]) + trial + seed, str(max(s.n for s in scores if s is not None)), *cells])
    lines = aligned(["final step", "n", *keys], rows)
    if width is None or max(map(len, lines)) <= width:
        return lines
    return aligned(
        ["final step", *(row[0] for row in rows)], list(zip(["n", *keys], *(row[1:] for row in rows), strict=True))
    )


def number(value: float | str | None) -> float | None:
    """A stored number, or None where it is missing or not finite."""
    return float(value) if value is not None and finite(float(value)) else None
