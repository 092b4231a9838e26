"""What a scheduler is: it reads the rungs as the ledger has them and decides about any run. It keeps no state of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sweeps.trial import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sweeps.spec import NoneConfig

ItemReader = Callable[[Run, int], "NDArray[Any]"]

Action = Literal["continue", "stop", "promote"]
RunState = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Decision:
    """About one run at one resource.

    `continue`: the reporting lease goes on (no decision point, or promoted on the spot). `stop`: the lease ends here; the
    run waits and may be promoted later. `promote`: a waiting run gets a lease to its next milestone.
    """

    run: Run
    action: Action
    resource: int
    reason: str = ""


@dataclass(frozen=True)
class RunView:
    """A run as schedulers see it.

    Attributes:
        run: which.
        order: its trial's order, the tie-break everywhere.
        state: `waiting` runs hold a checkpoint at a rung and may be promoted; `running` includes those that will go again.
        values: resource -> metric at that milestone, oriented so that smaller is better; NaN where it diverged. With several
            tuning seeds, the mean over those that have reported.
        target: the milestone its present or last lease was meant for.
        vectors: with several metrics, resource -> all of them there, oriented alike, NaN in each where it diverged; `values`
            then has the primary one. Empty with one metric.
    """

    run: Run
    order: int
    state: RunState
    values: Mapping[int, float] = field(default_factory=dict)
    target: int = 0
    vectors: Mapping[int, tuple[float, ...]] = field(default_factory=dict)


def no_items(run: Run, resource: int) -> NDArray[Any]:
    """An `ItemReader` for schedulers that look at means alone.

    Raises:
        LookupError: always.
    """
    raise LookupError(f"nobody gave the items of {run.id} at {resource}")


@dataclass(frozen=True)
class SweepView:
    """The sweep as schedulers see it.

    Attributes:
        runs: one run a trial (its first seed's), in order; duplicates of an earlier trial are left out.
        more_to_come: whether new trials will still be suggested.
        milestones: all rungs, ascending; the last is the pipeline's total.
        items: (run, milestone) -> item scores of the primary metric there, larger is better, NaN = unscored.
        changes: places in `runs` in the order in which they changed, from the first on; who was shown the same list before
            need only look at what it has more now. None where nobody keeps it.
    """

    runs: Sequence[RunView]
    more_to_come: bool
    milestones: tuple[int, ...]
    items: ItemReader = no_items
    changes: Sequence[int] | None = None


class Scheduler(Protocol):
    """Decides from the view alone, so that a fold of the ledger gives the same decisions.

    Attributes:
        milestones: where it looks at runs, ascending; the last is the total.
        left_behind: why a run that still waits when all is over ended, with `{}` for its rung.
    """

    milestones: tuple[int, ...]
    left_behind: str

    def on_report(self, run: Run, resource: int, view: SweepView) -> list[Decision]:
        """Decisions after `run` reported at a milestone; `view` already holds the report. Exactly one concerns `run`."""
        ...

    def next_lease(self, view: SweepView) -> Decision | None:
        """A waiting run to promote now that a slot is free; None when a new trial should start (or nothing is left)."""
        ...

    def expected(self, trials: int) -> tuple[int, ...]:
        """How many of so many trials reach each milestone when nothing fails."""
        ...


class RunToEnd:
    """`early_terminate: none`: every run goes to the pipeline's total; milestones only report."""

    left_behind = "not promoted at {}"

    def __init__(self, total: int) -> None:
        self.milestones: tuple[int, ...] = (total,)

    @classmethod
    def of(cls, config: NoneConfig, milestones: tuple[int, ...], finalists: int) -> RunToEnd:
        """From the sweep file's section."""
        return cls(milestones[-1])

    def on_report(self, run: Run, resource: int, view: SweepView) -> list[Decision]:
        """Goes on until the total."""
        return [Decision(run, "stop" if resource >= self.milestones[-1] else "continue", resource)]

    def next_lease(self, view: SweepView) -> Decision | None:
        """Nothing ever waits."""
        return None

    def expected(self, trials: int) -> tuple[int, ...]:
        """All of them."""
        return (trials,)
