"""Where a run's next lease had better not stand: on the nodes that its last one was lost on."""

from __future__ import annotations

from collections.abc import Mapping

from sweeps.failures import INFRASTRUCTURE, Failure

NOWHERE: frozenset[str] = frozenset()


class Elsewhere:
    """Which nodes leases stand on, and which ones those that follow a lost one avoid. This process's memory alone knows it.

    A worker is often lost by something of its node's: a full disk, a sick GPU, memory that others take. So a lease avoids the
    nodes that its run was lost on last, those of all its workers where a trial has several; a `resume` begins without.
    """

    def __init__(self) -> None:
        self._runs: dict[str, str] = {}
        self._stands: dict[str, frozenset[str]] = {}
        self._lost_on: dict[str, frozenset[str]] = {}
        self._avoided: dict[str, frozenset[str]] = {}

    def begun(self, lease: str, run: str) -> None:
        """A lease of a run was handed out."""
        self._runs[lease] = run
        lost = self._lost_on.pop(run, NOWHERE)
        if lost:
            self._avoided[lease] = lost

    def stand(self, nodes: Mapping[str, frozenset[str]]) -> None:
        """All leases that have a place now, with the nodes (ids) of their workers."""
        self._stands = dict(nodes)

    def avoided(self, lease: str) -> frozenset[str]:
        """The nodes (ids) that a lease had better not stand on."""
        return self._avoided.get(lease, NOWHERE)

    def anywhere(self, lease: str) -> None:
        """Any node is good enough for a lease from now on."""
        self._avoided.pop(lease, None)

    def ended(self, lease: str, failure: Failure | None = None) -> None:
        """A lease is over, with the failure where there was one; only those that are no fault of the trial count."""
        run, nodes = self._runs.pop(lease, None), self._stands.pop(lease, NOWHERE)
        self.anywhere(lease)
        if run is not None and nodes and failure is not None and failure.kind in INFRASTRUCTURE:
            self._lost_on[run] = nodes
