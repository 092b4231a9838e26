"""Fills the object store of one node of a Ray cluster and holds it full for a while, for `chaos.py` and the tests.

    python chaos_filler.py ADDRESS NODE SECONDS [SPILL]

NODE is a node's id, or a number that chooses one of the living nodes. Without SPILL it pins a quarter more than the store
holds, so that Ray must have spilled some to disk. With it (the folder of a small file system that Ray spills to) it fills that
first, and then pins objects, smaller and smaller ones, until Ray refuses the smallest. Then it prints one line of JSON, waits (SIGINT ends
the wait), and gives everything back. Exit status 0 where the store was full in that sense.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.local import connect

SIZES = (2**24, 2**20, 2**17, 2**14)
"""Bytes of the objects, one after the other."""
OVER = 1.25
BALLAST = "ballast"


class Filler:
    """An actor on the node, which owns and pins the objects."""

    def __init__(self) -> None:
        self.held: list[Any] = []

    def spill(self, capacity: float) -> dict[str, Any]:
        """Pin more than the store holds."""
        held = 0
        while held < OVER * capacity:
            self.held.append(ray.put(os.urandom(SIZES[0])))
            held += SIZES[0]
        return {"held_mb": held >> 20, "store_mb": int(capacity) >> 20, "full": held > capacity}

    def refuse(self, capacity: float) -> dict[str, Any]:
        """Pin until Ray refuses, the disk that it spills to being full."""
        held, refused = 0, ""
        for size in SIZES:
            refused = ""
            while not refused and held < 2 * capacity:
                try:
                    self.held.append(ray.put(os.urandom(size)))
                    held += size
                except (ray.exceptions.OutOfDiskError, ray.exceptions.ObjectStoreFullError) as error:
                    refused = type(error).__name__
        return {"held_mb": held >> 20, "store_mb": int(capacity) >> 20, "refused": refused, "full": bool(refused)}


def main() -> int:
    """Fill, say so, wait; 0 where the store was full."""
    address, node, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    spill = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    cluster = connect(address)
    try:
        alive = {one["NodeID"]: one["Resources"] for one in ray.nodes() if one["Alive"]}
        chosen = node if node in alive else sorted(alive)[int(node) % len(alive)]
        there = NodeAffinitySchedulingStrategy(chosen, soft=False)
        filler = ray.remote(num_cpus=0, scheduling_strategy=there)(Filler).remote()
        capacity = alive[chosen]["object_store_memory"]
        if spill is None:
            found = ray.get(filler.spill.remote(capacity), timeout=60)
        else:
            fill_disk(spill / BALLAST)
            found = ray.get(filler.refuse.remote(capacity), timeout=60)
        print(json.dumps(found), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(seconds)
        return 0 if found["full"] else 1
    finally:
        if spill is not None:
            (spill / BALLAST).unlink(missing_ok=True)
        cluster.close()


def fill_disk(file: Path) -> None:
    """Write into a file until nothing goes onto its file system any more."""
    with file.open("wb", buffering=0) as out:
        for size in (2**20, 2**12):
            try:
                while out.write(bytes(size)) == size:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


if __name__ == "__main__":
    sys.exit(main())
