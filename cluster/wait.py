"""`python -m cluster.wait NODES ADDRESS`: wait until that many nodes have joined, for scripts that start a cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

SECONDS = 300.0
"""Nodes that have not joined by then will not be waited for any longer; the sweep runs on those that have."""


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 0 once the nodes are there, or once at least one is and the time is up; 1 if the head can't be reached."""
    from cluster.base import ClusterError
    from cluster.local import connect

    wanted, address = (sys.argv[1:] if words is None else list(words))[:2]
    try:
        cluster = connect(address)
    except ClusterError as error:
        print(f"stockpot: {error}", file=sys.stderr)
        return 1
    try:
        until = time.monotonic() + SECONDS
        while (there := len(cluster.nodes)) < int(wanted) and time.monotonic() < until:
            time.sleep(1.0)
        print(f"{there} of {wanted} nodes have joined", flush=True)
        return 0 if there else 1
    finally:
        cluster.close()


if __name__ == "__main__":
    sys.exit(main())
