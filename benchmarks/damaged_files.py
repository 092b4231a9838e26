"""Damaged sweep files through `stockpot check`, in this process: exit status 0 or 2, a readable message, no traceback, nothing written.

Seeded damage, as hands and editors do it (`tests/unit/mutations.py`), to the sweep files in `examples/`, with the data beside
them. What is wrong is printed with the damaged file's number, and the file is kept.

    python benchmarks/damaged_files.py [--count 10000] [--first 0] [--keep FOLDER]

Ledgers, checkpoints and memo entries are damaged by `tests/unit/test_damage.py` and `test_memo.py`. Exit status 0 where
nothing is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from mutations import MUTATIONS

from sweeps.cli import main as stockpot

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAME = "sweep.yaml"


def main(words: Sequence[str] | None = None) -> int:
    """Damage, check, count; 0 where nothing is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first; each number is one damaged file")
    parser.add_argument(
        "--keep", type=Path, default=Path("."), help="where files that something was wrong with are kept"
    )
    arguments = parser.parse_args(words)
    keep = arguments.keep.resolve()
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.yaml"))}
    began, ended, wrong = time.monotonic(), Counter[tuple[str, str]](), 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as parent:
        folder = Path(parent) / "examples"
        shutil.copytree(EXAMPLES, folder)
        os.chdir(folder)
        (folder / NAME).touch()
        before = listed(folder)
        for number in range(arguments.first, arguments.first + arguments.count):
            name, text = damaged(files, number)
            (folder / NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
            status, problem = checked(number % 2 == 0)
            ended[name, status] += 1
            if not problem and listed(folder) != before:
                problem, before = "it wrote something", listed(folder)
            if problem:
                wrong += 1
                kept = shutil.copy(folder / NAME, keep / f"damaged-{number}.yaml")
                print(f"{number} ({name}): {problem}; kept as {kept}", flush=True)
        os.chdir(keep)
    print(f"{arguments.count} files, {wrong} of them not as they should be, {time.monotonic() - began:.0f} s")
    for (name, status), count in sorted(ended.items()):
        print(f"  {name:<24} status {status:<7} {count:>6}")
    return 1 if wrong else 0


def damaged(files: dict[str, str], number: int) -> tuple[str, str]:
    """The example's name and its text after one, two or four pieces of damage: the same for the same number."""
    draw = random.Random(number)
    name = list(files)[number % len(files)]
    text = files[name]
    for _ in range(draw.choice((1, 1, 2, 4))):
        text = draw.choice(MUTATIONS)(text, draw)
    return name, text


def checked(as_json: bool) -> tuple[str, str]:
    """Run `stockpot check`; how it ended, and what is wrong with that (nothing where all is well)."""
    out, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = stockpot(["check", NAME, *(["--json"] if as_json else [])])
    except Exception as error:  # what a user would see as a traceback
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "raised", f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
    said = out.getvalue() + errors.getvalue()
    if status not in (0, 2):
        return str(status), f"it ended with {status}"
    if not said.strip() or any(word in said for word in ("Traceback", "<class ", " object at 0x", "Input should")):
        return str(status), f"it said {said[-300:]!r}"
    if status == 2 and "nothing was written" not in errors.getvalue():
        return str(status), f"it did not say that nothing was written: {said[-300:]!r}"
    return str(status), ""


def listed(folder: Path) -> list[str]:
    """Everything in a folder."""
    return sorted(str(path) for path in folder.rglob("*"))


if __name__ == "__main__":
    sys.exit(main())
