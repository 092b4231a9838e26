"""What a Ray job runs on the cluster's head: `python -m sweeps.away submit|ask|follow|run ... -- WORDS`, started by `sweeps.commands.remote`.

`submit` puts what travelled with the job where all nodes see it, under the storage and its own hash, and drives the sweep there.
`ask` runs a reading command and prints its output, status and errors as one line that the caller can find among Ray's own.
`follow` runs one that goes on printing. Both say nothing, with the status `NOT_BEGUN`, where the sweep is not there. `run` runs any
other command as it is. All are the code of whoever submitted the job, which travelled with it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.packages import CODE, code_hash
from cluster.versions import minor

MARK = "STOCKPOT-ANSWER "
NOT_BEGUN = 75
"""Status of a command about a sweep that is not there; no command of ours has it (EX_TEMPFAIL)."""
VERSIONS = "STOCKPOT_VERSIONS"
"""Environment variable with the versions of whoever gave the command, JSON."""
SHIPPED = ".shipped"


def versions() -> dict[str, str]:
    """What must be the same here and there: Python's minor version, Ray, Stockpot."""
    from importlib.metadata import version

    return {
        "python": minor(platform.python_version()),
        "ray": version("ray"),
        "stockpot": version("stockpot"),
    }


def differing(theirs: Mapping[str, str]) -> str | None:
    """What differs from this machine, as one message; None where nothing does."""
    own = versions()
    told = [
        f"{name} is {own[name]} on the cluster and {theirs.get(name, 'unknown')} where the command was given"
        for name in own
        if theirs.get(name) != own[name]
    ]
    if told:
        return f"{'; '.join(told)}: install the same versions on both"
    came = os.environ.get(CODE)
    if came not in (None, code_hash()):
        return (
            f"Stockpot's code {came} came with the job, and {code_hash()} in {Path(__file__).parent} runs on the cluster: something there "
            "puts another copy first on Python's path (a sitecustomize module?); take it away"
        )
    return None


def main(words: Sequence[str] | None = None) -> int:
    """Run one of the four; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.away")
    verbs = parser.add_subparsers(dest="verb", required=True)
    submit = verbs.add_parser("submit")
    submit.add_argument("--storage", required=True)
    submit.add_argument("--file", required=True)
    submit.add_argument("words", nargs="*")
    for verb in ("ask", "follow"):
        about = verbs.add_parser(verb)
        about.add_argument("--sweep", required=True)
        about.add_argument("words", nargs="+")
    verbs.add_parser("run").add_argument("words", nargs="+")
    arguments = parser.parse_args(words)
    wrong = differing(json.loads(os.environ.get(VERSIONS, "{}")))
    if wrong is not None:
        print(f"stockpot: {wrong}", file=sys.stderr)
        return 2
    if arguments.verb == "ask":
        return answer(arguments.sweep, arguments.words)
    if arguments.verb == "follow" and not _is_there(arguments.sweep):
        return NOT_BEGUN
    if arguments.verb in ("follow", "run"):
        from sweeps.cli import main as stockpot

        return stockpot(arguments.words)
    return drive(arguments.storage, Path(arguments.file), arguments.words)


def drive(storage: str, file: Path, words: Sequence[str]) -> int:
    """Drive the sweep from a copy under the storage, made once for each content; of remote storage in its folder here."""
    from sweeps.cli import main as stockpot
    from sweeps.paths import storage_folder

    home = place(Path.cwd(), storage_folder(storage))
    os.chdir(storage_folder(storage))
    sets = ["--set", f"storage={storage}"]
    return stockpot(["submit", str(home / file), "--address", "auto", *words, *sets])


def place(travelled: Path, storage: Path) -> Path:
    """Where a job's files lie for good; copied aside and moved, once."""
    from sweeps.shipping import tree_hash

    home = storage / SHIPPED / tree_hash(travelled)
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    aside = home.with_name(f".{home.name}.{uuid.uuid4().hex[:8]}.tmp")
    shutil.copytree(travelled, aside, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        aside.rename(home)
    except OSError:
        shutil.rmtree(aside)
        if not home.is_dir():
            raise
    return home


def _is_there(sweep: str) -> bool:
    """Whether a sweep is in the folder, or at the address."""
    from sweeps.commands.places import NoSuchSweep, UsageError, find_sweep

    try:
        find_sweep(sweep, os.curdir)
    except NoSuchSweep:
        return False
    except UsageError:  # the command itself says what is wrong
        return True
    return True


def answer(sweep: str, words: Sequence[str]) -> int:
    """Run a command about a sweep and print what it said on one line."""
    from sweeps.cli import main as stockpot

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = stockpot(words) if _is_there(sweep) else NOT_BEGUN
    told = json.dumps({"status": status, "out": out.getvalue(), "errors": errors.getvalue()})
    print(MARK + base64.b64encode(told.encode()).decode(), flush=True)
    return 0


def read_answer(log: str) -> tuple[int, str, str] | None:
    """Status, output and errors from a job's log; None where there are none."""
    line = next((line for line in reversed(log.splitlines()) if line.startswith(MARK)), None)
    if line is None:
        return None
    told = json.loads(base64.b64decode(line.removeprefix(MARK)))
    return told["status"], told["out"], told["errors"]


if __name__ == "__main__":
    sys.exit(main())
