"""How long a user waits for `stockpot --help` and for `stockpot check` of a file: medians over fresh processes.

    python benchmarks/startup.py [--file examples/quickstart.yaml] [--times 7]

The first run of each, which may write bytecode, is not counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

ALLOWED_SECONDS = {"--help": 0.2, "check": 1.0}


def once(words: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    cpu, began = _cpu(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "sweeps.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, _cpu() - cpu


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Print a line each; 1 where a median is above what is allowed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--file", default="examples/quickstart.yaml")
    parser.add_argument("--times", type=int, default=7)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    slow = False
    for name, words in (("--help", ["--help"]), ("check", ["check", arguments.file])):
        once(words)
        walls, cpus = zip(*(once(words) for _ in range(arguments.times)), strict=True)
        wall = statistics.median(walls)
        slow |= wall > ALLOWED_SECONDS[name]
        print(
            f"{name:8} {wall:.2f} s ({min(walls):.2f} to {max(walls):.2f}), CPU {statistics.median(cpus):.2f} s, "
            f"allowed {ALLOWED_SECONDS[name]:g} s"
        )
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
