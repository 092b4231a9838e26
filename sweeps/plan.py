"""What the engine needs of a loaded sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sweeps.metrics import Metric
from sweeps.space import Space
from sweeps.spec import SweepSpec


class Plan(Protocol):
    """What the loop needs of a loaded sweep (`sweeps.load.LoadedSweep`)."""

    @property
    def spec(self) -> SweepSpec:
        """The sweep file, typed."""
        ...

    @property
    def space(self) -> Space:
        """What `parameters` says."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is optimised, the primary metric first."""
        ...

    @property
    def milestones(self) -> tuple[int, ...]:
        """All rungs, the total last."""
        ...

    @property
    def finalists(self) -> int:
        """Trials guaranteed to reach the total."""
        ...

    def resolve(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """A trial's resolved pipeline configuration. Raises ValueError for one that no run could have."""
        ...

    def milestones_of(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """A resolved configuration's own milestones; `milestones` wherever all runs have one length."""
        ...

    def resolve_baseline(self) -> Mapping[str, Any] | None:
        """The baseline's resolved configuration; None for the untuned model."""
        ...
