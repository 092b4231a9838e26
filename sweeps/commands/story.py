"""A soup's story and the final step's verdicts in plain words, from the folded ledger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.trial import finite

if TYPE_CHECKING:
    from sweeps.state import SoupState, SweepState

VERDICT_WORDS = {"left": "{left} is better", "right": "{right} is better", "neither": "no difference shown"}
ROLES = {"winner": "best single", "soup": "soup", "baseline": "untuned model"}


def soup_lines(soup: SoupState, root: Path) -> list[str]:
    """What a soup was made of, one line a decision."""
    top = f"soup {soup.id}: {soup.method} over {len(soup.ingredients)} runs, chosen on {soup.metric}"
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
    inside = [_run_name(entry) for entry in soup.finished.get("ingredients") or ()]
    if inside:
        lines.append(f"  in it   {', '.join(inside)}")
    if soup.finished.get("folder"):
        lines.append(f"  folder  {root / soup.finished['folder']}")
    return lines


def _run_name(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return str(entry.get("run"))
    return str(entry[0] if isinstance(entry, list | tuple) else entry)


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """`soup - best single on test/loss: -0.012 ± 0.020 (95 %), n=60: no difference shown`."""
    left, right = role(verdict["left"]), role(verdict["right"])
    difference, low, high = (number(verdict.get(key)) for key in ("difference", "low", "high"))
    head = f"{left} - {right} on {verdict['metric']}: "
    if difference is None:
        return head + "nothing could be compared"
    text = head + f"{difference:+.3g}"
    if low is not None and high is not None:
        text += f" ± {(high - low) / 2:.2g} (95 %)"
    words = VERDICT_WORDS[verdict.get("better") or "neither"]
    return text + f", n={verdict['n']}: {words.format(left=left, right=right)}"


def role(name: str) -> str:
    """How a candidate's role is called in a sentence."""
    return ROLES.get(name, name)


def final_lines(state: SweepState) -> list[str]:
    """Scores on `test` of every candidate, the verdicts, and how often test was opened."""
    lines = []
    for final in state.finals:
        scores = [f"{key} {_score(score)}" for key, score in final["scores"].items()]
        seed = f" (seed {final['seed']})" if final.get("seed") is not None else ""
        lines.append(f"{role(final['role'])}{seed}: {', '.join(scores)}")
    lines += [verdict_line(verdict) for verdict in state.verdicts]
    if state.test_openings > 1:
        lines.append(
            f"test was opened {state.test_openings} times for {len(state.verdicts)} verdicts: "
            "the more often, the less one of them means"
        )
    return lines


def _score(score: Any) -> str:
    error = f" ± {score.se:.2g}" if finite(score.se) else ""
    return f"{score.value:.4g}{error} (n={score.n})"


def number(value: float | str | None) -> float | None:
    """A stored number, or None where it is missing or not finite."""
    return float(value) if value is not None and finite(float(value)) else None
