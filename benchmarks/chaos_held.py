"""What a cluster still holds: `python benchmarks/chaos_held.py HOST:PORT` prints actors that are not dead and placement groups, a line each.

A pending actor, or a placement group that nobody removed, has no process to be found by.
"""

from __future__ import annotations

import contextlib
import sys

import ray
from ray._private.state import actors

from cluster.local import connect


def main() -> int:
    """Print them."""
    with contextlib.closing(connect(sys.argv[1])):
        for actor in actors().values():
            if actor["State"] != "DEAD":
                print(f"actor {actor.get('ActorClassName', actor['ActorID'])}: {actor['State']}")
        for group in ray.util.placement_group_table().values():
            if group["state"] != "REMOVED":
                print(f"placement group {group['placement_group_id']}: {group['state']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
