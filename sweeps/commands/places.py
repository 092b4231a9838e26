"""Which sweep a NAME means: a folder, or a name under the storage; and which file a SWEEP.yaml."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from sweeps.notes import read_note
from sweeps.paths import DEFAULT_STORAGE, SweepPaths


class UsageError(RuntimeError):
    """The user's mistake on the command line, as one readable message; exit status 2."""


def holds_sweep(paths: SweepPaths) -> bool:
    """Whether a sweep's ledger is there, live or as segments."""
    return paths.ledger.is_file() or (paths.segments.is_dir() and any(paths.segments.iterdir()))


def sweeps_under(storage: str) -> list[SweepPaths]:
    """The sweeps in a storage folder, by name."""
    root = Path(storage).expanduser().resolve()
    if not root.is_dir():
        return []
    found = [SweepPaths(folder) for folder in sorted(root.iterdir()) if not folder.name.startswith(".")]
    return [paths for paths in found if holds_sweep(paths)]


def find_sweep(name: str, storage: str) -> SweepPaths:
    """The sweep that `name` means: a name under `storage`, a folder with a ledger, or one that was submitted from here.

    Raises:
        UsageError: when there is none, naming the nearest one that exists.
    """
    if not name.strip():
        raise UsageError(f"an empty NAME means no sweep. {_existing(name, storage)}")
    under = SweepPaths.of(storage, name)
    note = read_note(name)
    noted = [] if note is None else [SweepPaths.of(note.storage, name)]
    for paths in (under, SweepPaths(Path(name).expanduser().resolve()), *noted):
        if holds_sweep(paths):
            return paths
    if name.endswith((".yaml", ".yml")):
        stem = Path(name).stem
        raise UsageError(f"'{name}' is a sweep file; give the sweep's name or its folder. {_existing(stem, storage)}")
    where = Path(storage).expanduser().resolve()
    raise UsageError(f"there is no sweep '{name}', under {where} or as a folder. {_existing(name, storage)}")


def _existing(name: str, storage: str) -> str:
    names = [paths.name for paths in sweeps_under(storage)]
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"Did you mean '{near[0]}'? (`stockpot list` shows all)"
    if names:
        return "There are: " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return "There are no sweeps there; `--storage FOLDER` looks elsewhere"


def word_for(paths: SweepPaths) -> str:
    """The shortest NAME that means this sweep from here: its name under the default storage, else its folder."""
    if paths.root.parent == Path(DEFAULT_STORAGE).expanduser().resolve():
        return paths.name
    return str(paths.root)


def sweep_file(arguments: argparse.Namespace) -> Path:
    """The sweep file.

    Raises:
        UsageError: when none was given, or it is no file, with the files that may be meant.
    """
    verb = arguments.command
    if arguments.file is None:
        here = _sweep_files(Path("."))
        hint = f"here are: {', '.join(here)}" if here else "`stockpot init sft DATA` writes one for your data"
        raise UsageError(f"`{verb}` needs a sweep file: stockpot {verb} SWEEP.yaml ({hint})")
    path = Path(arguments.file).expanduser()
    if path.is_dir():
        inside = _sweep_files(path)
        hint = f"; it holds {', '.join(inside)}" if inside else ""
        raise UsageError(f"'{arguments.file}' is a folder, not a sweep file{hint}")
    if not path.exists():
        folder = path.parent
        near = difflib.get_close_matches(str(path), _sweep_files(folder) if folder.is_dir() else [], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f" (looked in {folder.resolve()})"
        raise UsageError(f"there is no file '{arguments.file}'{hint}")
    return path


def _sweep_files(folder: Path) -> list[str]:
    return sorted(str(path) for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern))[:8]


def trial_named(word: str, trials: list[str], sweep: str) -> str:
    """The trial that `word` means: its id, its number, or a beginning that holds the number.

    Raises:
        UsageError: when none fits.
    """
    if word in trials:
        return word
    found = [trial for trial in trials if word.isdigit() and int(trial.partition("-")[0]) == int(word)]
    found = found or [trial for trial in trials if trial.startswith(word)]
    if len(found) == 1:
        return found[0]
    there = f"{trials[0]} to {trials[-1]}" if trials else "none yet"
    raise UsageError(f"sweep {sweep} has no trial '{word}'; its trials: {there}")
