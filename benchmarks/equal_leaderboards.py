"""One sweep file three ways, one trial at a time: on Ray started here, on a cluster of two hosts, and as a detached Ray job.

The two hosts are network namespaces (root), with a cluster that asks for a token: `stockpot cluster up` on the first,
`stockpot cluster up --join` on the second, which alone has the CPUs for a trial. The driver of the second run, and the
job of the third, are on the first host. Printed are the leaderboards and whether they are equal, to the last digit of every
score of every trial, of the soup and of the final step.

    python benchmarks/equal_leaderboards.py [FILE] [--set KEY=VALUE ...]

FILE is `examples/quickstart.yaml` where none is given (about 10 minutes a run on 2 cores); a smaller one:
`--set budget.trials=2 pipeline.max_steps=4 early_terminate=none soup.top=2`.
Exit status 0 where they are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from namespaces import Hosts

ROOT = Path(__file__).resolve().parents[1]

STOCKPOT = str(Path(sys.executable).with_name("stockpot"))
START_SECONDS = 180.0
BEGIN_SECONDS = 600.0
"""How long a job may take to its first event: its environment is made, and its driver starts."""
CPUS = 2
"""Of a trial, in every run: threads decide the last digits of sums."""


def main(words: Sequence[str] | None = None) -> int:
    """Run three times, compare; 0 where the leaderboards are equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", default=str(ROOT / "examples" / "quickstart.yaml"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="as `stockpot submit --set`")
    arguments = parser.parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="equal-", dir="/tmp"))
    source = Path(arguments.file).resolve()
    beside = folder / "files"
    shutil.copytree(source.parent, beside)
    file = beside / source.name
    with Hosts(2) as hosts:
        boards = {"embedded": embedded(folder, file, arguments.set), **clustered(folder, file, arguments.set, hosts)}
    for name, board in boards.items():
        print(f"{name}: {board['seconds']:.0f} s")
        for row in board["rows"]:
            print("  " + json.dumps(row))
    equal = all(board["rows"] == boards["embedded"]["rows"] for board in boards.values())
    print("equal" if equal else "not equal")
    if equal:
        shutil.rmtree(folder)
    return 0 if equal else 1


def embedded(folder: Path, file: Path, sets: Sequence[str]) -> dict[str, Any]:
    """The sweep on Ray started for it."""
    began = time.monotonic()
    stockpot(folder, [], *submit(folder, file, "embedded", sets))
    return board(folder, "embedded", began)


def clustered(folder: Path, file: Path, sets: Sequence[str], hosts: Hosts) -> dict[str, dict[str, Any]]:
    """The sweep on two hosts, attached to their cluster and as its job."""
    found, raised = {}, []
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    try:
        told = up(folder, hosts, 0, raised, "--cpus", "1", "--jobs", str(port))
        address = re.findall(r"--address (\d\S+)", told)[0]
        up(folder, hosts, 1, raised, "--cpus", str(CPUS), "--join", address)
        here = hosts.command(0, [])
        began = time.monotonic()
        stockpot(folder, here, *submit(folder, file, "cluster", sets), "--address", address)
        found["cluster"] = board(folder, "cluster", began)
        began = time.monotonic()
        jobs = f"http://127.0.0.1:{port}"
        stockpot(folder, here, *submit(folder, file, "job", sets), "--address", jobs, "--detach")
        while not finished(folder, "job", began + BEGIN_SECONDS):
            time.sleep(2)
        found["job"] = board(folder, "job", began)
    finally:
        for one in reversed(raised):
            one.send_signal(signal.SIGINT)
            one.wait()
    return found


def up(folder: Path, hosts: Hosts, number: int, raised: list[subprocess.Popen[bytes]], *more: str) -> str:
    """Raise a node on a host; what it printed.

    Raises:
        RuntimeError: if it does not come up.
    """
    log = folder / f"host-{number}.log"
    words = [STOCKPOT, "cluster", "up", "--nodes", "1", "--host", hosts.address(number), *more]
    with log.open("wb") as out:
        one = subprocess.Popen(
            hosts.command(number, words), env=environment(folder), cwd=folder, stdout=out, stderr=out
        )
    raised.append(one)
    until = time.monotonic() + START_SECONDS
    while "Ctrl-C" not in (told := log.read_text()):
        if one.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"a node did not come up: {told[-1000:]}")
        time.sleep(0.2)
    return told


def submit(folder: Path, file: Path, name: str, sets: Sequence[str]) -> list[str]:
    """The words of the command, but for where."""
    own = [f"name={name}", f"storage={folder / 'runs'}", "max_concurrent_trials=1", f"resources.cpus={CPUS}"]
    return ["submit", str(file), *(word for one in [*sets, *own] for word in ("--set", one))]


def stockpot(folder: Path, before: Sequence[str], *words: str) -> str:
    """Run the command; what it printed.

    Raises:
        RuntimeError: if it fails.
    """
    done = subprocess.run(
        [*before, STOCKPOT, *words],
        cwd=folder, env=environment(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"stockpot {' '.join(words)}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """A home of its own, so that the token is one of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(folder)}


def finished(folder: Path, name: str, until: float) -> bool:
    """Whether a sweep has ended.

    Args:
        folder: where all of this lies.
        name: the sweep's.
        until: when it must have begun, as `time.monotonic` says.

    Raises:
        RuntimeError: if its job ended without it, or did not begin it.
    """
    if not (folder / "runs" / name / "ledger.sqlite").exists():
        if time.monotonic() > until:
            raise RuntimeError(f"the job of the sweep {name} has begun nothing within {BEGIN_SECONDS:g} s")
        return False
    state = json.loads(stockpot(folder, [], "status", name, "--storage", str(folder / "runs"), "--json"))["state"]
    if state in ("stopped", "interrupted"):
        raise RuntimeError(f"the sweep {name} is {state}")
    return bool(state == "finished")


def board(folder: Path, name: str, began: float) -> dict[str, Any]:
    """A leaderboard's rows and the final step, by the keys that must be equal.

    Of a trial's name only its number counts: the rest is a hash of its configuration, which names where the data lie, and a
    job's data lie where they were shipped to.
    """
    told = json.loads(stockpot(folder, [], "show", name, "--storage", str(folder / "runs"), "--json"))
    kept = ("rank", "name", "kind", "state", "rung", "parameters", "scores")
    rows = [{key: row[key] for key in kept if key in row} for row in told["rows"]]
    rows = [{**row, "name": row["name"].partition("-")[0]} if row["kind"] == "trial" else row for row in rows]
    rows += [{key: one[key] for key in ("role", "scores") if key in one} for one in told["finals"]]
    return {"seconds": time.monotonic() - began, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
