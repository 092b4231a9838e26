"""Which sweep a NAME means: a folder, or a name under the storage; and which file a SWEEP.yaml."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from sweeps.notes import read_note
from sweeps.paths import DEFAULT_STORAGE, SweepPaths, is_remote, work_dir


class UsageError(RuntimeError):
    """The user's mistake on the command line, as one readable message; exit status 2."""


class NoSuchSweep(UsageError):
    """There is no sweep of a name."""


def holds_sweep(paths: SweepPaths) -> bool:
    """Whether a sweep's ledger is there, live or as segments."""
    return paths.ledger.is_file() or (paths.segments.is_dir() and any(paths.segments.iterdir()))


def sweeps_under(storage: str) -> list[SweepPaths]:
    """The sweeps in a storage, by name.

    Raises:
        UsageError: when remote storage can't be read.
    """
    if is_remote(storage):
        return _sweeps_at(storage.rstrip("/"))
    root = Path(storage).expanduser().resolve()
    if not root.is_dir():
        return []
    found = [SweepPaths(folder) for folder in sorted(root.iterdir()) if not folder.name.startswith(".")]
    return [paths for paths in found if holds_sweep(paths)]


def _sweeps_at(storage: str) -> list[SweepPaths]:
    found = [_newest(SweepPaths.of(storage, name), False) for name in _names_at(storage)]
    return [paths for paths in found if paths is not None]


def _names_at(storage: str) -> list[str]:
    from sweeps.schemes import problem
    from sweeps.storage import StorageError, open_storage

    wrong = problem(storage)
    if wrong is not None:
        raise UsageError(f"{storage}: {wrong}")
    try:
        return [name for name in open_storage(storage).folders() if not name.startswith(".")]
    except StorageError as error:
        raise UsageError(f"{error} ({error.kind})") from error


def find_sweep(name: str, storage: str, *, writing: bool = False) -> SweepPaths:
    """The sweep that `name` means: a name under `storage`, a folder with a ledger, a URL, or one that was submitted from here.

    Args:
        name: as given.
        storage: `--storage`.
        writing: whether its driver, its working folder, is meant; else what of remote storage is newest is read.

    Raises:
        NoSuchSweep: when there is none, naming the nearest one that exists.
        UsageError: when NAME is no name, or means several.
    """
    if not name.strip():
        raise UsageError(f"an empty NAME means no sweep. {_existing(name, storage)}")
    if is_remote(name):
        parent, _, last = name.rstrip("/").rpartition("/")
        return _in_storage(last, parent, writing)
    if is_remote(storage):
        return _in_storage(name, storage.rstrip("/"), writing)
    under = SweepPaths.of(storage, name)
    note = read_note(name)
    noted = [] if note is None or is_remote(note.storage) else [SweepPaths.of(note.storage, name)]
    for paths in (under, SweepPaths(Path(name).expanduser().resolve()), *noted):
        if holds_sweep(paths):
            return paths
    if note is not None and is_remote(note.storage):
        return _in_storage(name, note.storage, writing)
    urls = worked_on(name)
    if len(urls) == 1:
        return _in_storage(name, urls[0], writing)
    if urls:
        raise UsageError(
            f"'{name}' is in several storages: {', '.join(f'{url}/{name}' for url in urls)}; give one of these"
        )
    if name.endswith((".yaml", ".yml")):
        stem = Path(name).stem
        raise UsageError(f"'{name}' is a sweep file; give the sweep's name or its folder. {_existing(stem, storage)}")
    where = Path(storage).expanduser().resolve()
    raise NoSuchSweep(f"there is no sweep '{name}', under {where} or as a folder. {_existing(name, storage)}")


def worked_on(name: str) -> list[str]:
    """Remote storages whose sweep of this name was driven on this machine."""
    if "/" in name or not work_dir().is_dir():
        return []
    found = [folder / name / "sweep.resolved.json" for folder in sorted(work_dir().iterdir())]
    return [url for file in found if file.is_file() and is_remote(url := _storage_in(file))]


def _storage_in(file: Path) -> str:
    import json

    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["spec"]["storage"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _in_storage(name: str, storage: str, writing: bool) -> SweepPaths:
    """A sweep in remote storage: its working folder where a driver is at work here or is meant, else what is newer.

    Raises:
        UsageError: when there is none (`NoSuchSweep`), or the storage can't be read and nothing lies here either.
    """
    from sweeps.schemes import problem

    wrong = problem(storage)
    if wrong is not None:
        raise UsageError(f"{storage}: {wrong}")
    found = _newest(SweepPaths.of(storage, name), writing)
    if found is None:
        raise NoSuchSweep(f"there is no sweep '{name}' in {storage}. {_existing(name, storage)}")
    return found


def _newest(own: SweepPaths, writing: bool) -> SweepPaths | None:
    from sweeps.fetching import refresh, seen_nonce
    from sweeps.lock import DriverLock
    from sweeps.storage import StorageError
    from sweeps.storage_lease import own_nonce

    copy = own.read_copy
    if DriverLock.holder(own.lock) is not None:
        return own
    try:
        there = refresh(copy, texts=not writing)
    except StorageError as error:
        if not holds_sweep(own):
            raise UsageError(f"{error} ({error.kind})") from error
        print(f"stockpot: {error} ({error.kind}); this is what lies in {own.root}", file=sys.stderr)
        return own
    if not there:
        return own if holds_sweep(own) else None
    newest = holds_sweep(own) and own_nonce(own) == seen_nonce(copy)
    return own if writing or newest else copy


def _existing(name: str, storage: str) -> str:
    names = _names_at(storage) if is_remote(storage) else [paths.name for paths in sweeps_under(storage)]
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"Did you mean '{near[0]}'? (`stockpot list` shows all)"
    if names:
        return "There are: " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return "There are no sweeps there; `--storage FOLDER` looks elsewhere"


def word_for(paths: SweepPaths) -> str:
    """The shortest NAME that means this sweep from here: its name under the default storage, else its folder or URL."""
    if paths.url:
        return paths.url
    if paths.root.parent == Path(DEFAULT_STORAGE).expanduser().resolve():
        return paths.name
    return str(paths.root)


def go_on(paths: SweepPaths, address: str | None = None, *, insecure: bool = False) -> str:
    """The command that goes on with a sweep where it ran last: as the job that it was submitted as from here, or at an address.

    Args:
        paths: where the sweep lies.
        address: of its last driver's cluster; None where it had a Ray of its own.
        insecure: whether that cluster lets everybody in.
    """
    flag = " --insecure" if insecure else ""
    word, note = word_for(paths), read_note(paths.name)
    if note is not None and SweepPaths.of(note.storage, note.name).place == paths.place:
        if "://" in note.address:  # its driver's cluster was the job's own, or is reached through the job's door
            return f"stockpot resume {paths.name}{flag}"
        word = paths.name
    return f"stockpot resume {word}" + (f" --address {address}{flag}" if address else "")


def refuse_idle_insecure(arguments: argparse.Namespace) -> None:
    """Raise where `--insecure` is given and there is no cluster, in place of passing it over.

    Raises:
        UsageError: saying what it is for.
    """
    if arguments.insecure and arguments.address is None:
        raise UsageError(
            "--insecure is for a cluster: --address HOST:PORT or http://HEAD:8265; Ray that is started here asks for a token"
        )


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
