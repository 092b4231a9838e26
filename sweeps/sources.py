"""`sweep://NAME/{best|soup|TRIAL|top-K}`: weights that another sweep made, as a path and a hash.

The other sweep's ledger is folded, never written. NAME is a name under the storage, or a folder.

Example:
    >>> resolve_source("sweep://gsm8k-lora/soup", storage=Path("stockpot-runs"), folder=Path("."))
    Source(path='/.../stockpot-runs/gsm8k-lora/soups/...', hash='9f86...')
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.hashes import file_hash
from pipelines.weights import NOT_WEIGHTS
from sweeps.local import SWEEP
from sweeps.paths import SweepPaths
from sweeps.problems import close, show

if TYPE_CHECKING:
    from sweeps.state import RunState, SweepState

_TOP = re.compile(r"top-([1-9]\d*)")


@dataclass(frozen=True)
class Source:
    """Weights on disk.

    Attributes:
        path: absolute folder of a PEFT adapter or a model; the first of several.
        hash: SHA-256 over its safetensors files, names and contents; of several over their hashes.
        note: what may not be meant, for people; empty mostly.
        members: of `top-K`, their folders, the best first; else empty.
    """

    path: str
    hash: str
    note: str = ""
    members: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """The folder of each model."""
        return self.members or (self.path,)

    def record(self) -> dict[str, Any]:
        """JSON; `from_record` reads it."""
        return {"path": self.path, "hash": self.hash, **({"members": list(self.members)} if self.members else {})}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Source:
        """The inverse of `record`."""
        return cls(record["path"], record["hash"], members=tuple(record.get("members", ())))


class SourceError(ValueError):
    """A `sweep://` name that leads nowhere; the message says what there is."""


def resolve_source(text: str, storage: Path, folder: Path, *, several: bool = False) -> Source:
    """Path and hash of what `sweep://NAME/WHAT` means now.

    Args:
        text: the name.
        storage: where the sweeps lie.
        folder: what a relative NAME that is a folder is relative to.
        several: whether `top-K` may stand there.

    Raises:
        SourceError: if there is no such sweep, or it has no such weights (yet).
    """
    name, _, what = text.removeprefix(SWEEP).rstrip("/").rpartition("/")
    if not text.startswith(SWEEP) or not name or not what:
        raise SourceError(f"{show(text)} is not sweep://NAME/best, sweep://NAME/soup or sweep://NAME/TRIAL")
    paths, note = _find(name, storage, folder), ""
    state = _read(paths)
    if (top := _TOP.fullmatch(what)) is not None:
        if not several:
            raise SourceError(f"{show(text)} is an ensemble, and one model is wanted: best, soup or a trial")
        return _ensemble(paths, state, int(top[1]))
    if what == "soup":
        place = _soup(paths, state)
    elif what == "best":
        run, note = _best(paths, state)
        place = _checkpoint(paths, run)
    else:
        place = _checkpoint(paths, _trial(paths, state, what))
    if not place.is_dir():
        raise SourceError(f"{text} means {place}, which is not there any more")
    return Source(str(place), weights_hash(place), note)


def unfoldable(folder: str) -> str | None:
    """Why weights can't be what a model begins with; None where they can."""
    path = Path(folder) / "adapter_config.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("peft_type") == "PROMPT_TUNING":
        return "holds virtual tokens that stand before every row, which can't be folded into a model's weights"
    return None


def with_teacher(config: Mapping[str, Any], sources: Mapping[str, Source]) -> dict[str, Any]:
    """A configuration whose `teacher` is paths in place of `sweep://` names, with `teacher_hash` beside it.

    Args:
        config: JSON; without a teacher it stays as it is.
        sources: name -> what it means.
    """
    teacher = config.get("teacher")
    names = [teacher] if isinstance(teacher, str) else list(teacher or ())
    known = [sources[name] for name in names if name in sources]
    if not known:
        return dict(config)
    folders: list[str] = []
    for name in names:
        source = sources.get(name)
        folders += [name] if source is None else source.folders
    hashes = [source.hash for source in known]
    joined = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    return {**config, "teacher": folders[0] if len(folders) == 1 else folders, "teacher_hash": joined}


def _find(name: str, storage: Path, folder: Path) -> SweepPaths:
    places = (SweepPaths.of(storage, name), SweepPaths((folder / Path(name).expanduser()).resolve()))
    for paths in places:
        if paths.resolved_spec.is_file():
            return paths
    names = [entry.name for entry in storage.iterdir() if entry.is_dir()] if storage.is_dir() else []
    guess = close(name, names)
    mend = f"did you mean '{guess}'? " if guess else ""
    raise SourceError(f"there is no sweep '{name}' under {storage}; {mend}NAME is a sweep's name or its folder")


def _read(paths: SweepPaths) -> SweepState:
    from sweeps.fold import fold
    from sweeps.ledger import Ledger, LedgerError

    try:
        ledger = Ledger.read(paths.root)
    except LedgerError as error:
        raise SourceError(str(error)) from None
    try:
        return fold(ledger.events())
    finally:
        ledger.close()


def _soup(paths: SweepPaths, state: SweepState) -> Path:
    folders = [soup.finished["folder"] for soup in state.soups.values() if soup.finished is not None]
    made = [folder for folder in folders if folder]
    if not made:
        raise SourceError(f"the sweep '{paths.name}' has no finished soup; stockpot soup {paths.name} makes one")
    place = Path(made[-1])
    return place if place.is_absolute() else paths.root / place


def _ensemble(paths: SweepPaths, state: SweepState, count: int) -> Source:
    """The best runs on the primary metric."""
    from sweeps.load import load_resolved
    from sweeps.scoring import ranked

    placed = ranked(load_resolved(paths.resolved_spec), state)
    if len(placed) < count:
        raise SourceError(
            f"top-{count} of the sweep '{paths.name}': only {len(placed)} of its runs reached the top rung"
        )
    folders = []
    for one in placed[:count]:
        try:
            folders.append(_checkpoint(paths, one.run))
        except SourceError as error:
            raise SourceError(f"{error}; keep.best: {count} would have kept them all") from None
    gone = next((folder for folder in folders if not folder.is_dir()), None)
    if gone is not None:
        raise SourceError(f"top-{count} of the sweep '{paths.name}': {gone} is not there any more")
    hashes = [weights_hash(folder) for folder in folders]
    names = tuple(str(folder) for folder in folders)
    return Source(names[0], hashlib.sha256(" ".join(hashes).encode()).hexdigest(), members=names)


def _best(paths: SweepPaths, state: SweepState) -> tuple[RunState, str]:
    """The best run on the primary metric, and a note where there are several."""
    from sweeps.load import load_resolved
    from sweeps.scoring import ranked

    loaded = load_resolved(paths.resolved_spec)
    placed = ranked(loaded, state)
    if not placed:
        raise SourceError(f"the sweep '{paths.name}' has no scored run yet")
    run, note = placed[0].run, ""
    if len(loaded.metrics) > 1:
        note = (
            f"sweep://{paths.name}/best is {run.trial}, the best on {loaded.metric} alone of {len(loaded.metrics)} metrics; "
            f"sweep://{paths.name}/TRIAL takes another of the front"
        )
    return run, note


def _trial(paths: SweepPaths, state: SweepState, what: str) -> RunState:
    found = [run for run in state.runs.values() if run.trial == what or run.trial.split("-")[0] == what]
    if not found:
        guess = close(what, {run.trial for run in state.runs.values()} | {"best", "soup"})
        mend = f"; did you mean '{guess}'?" if guess else "; write best, soup, or a trial of stockpot show"
        raise SourceError(f"the sweep '{paths.name}' has no trial '{what}'{mend}")
    return min(found, key=lambda run: (-max(run.reports, default=0), run.seed))


def _checkpoint(paths: SweepPaths, run: RunState) -> Path:
    from sweeps.scoring import checkpoint_folder

    kept = {resource: checkpoint_folder(paths, run, report) for resource, report in run.reports.items()}
    newest = max((resource for resource, folder in kept.items() if folder is not None), default=None)
    folder = None if newest is None else kept[newest]
    if folder is None:
        raise SourceError(
            f"no checkpoint of {run.id} in the sweep '{paths.name}' was kept; keep: {{best: N}} in its file keeps those of the best N runs"
        )
    return folder


def weights_hash(folder: Path) -> str:
    """SHA-256 (hex) over the model's safetensors files of a folder, names and contents; optimizer state is no weights."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.glob("*.safetensors") if path.name not in NOT_WEIGHTS)
    if not files:
        raise SourceError(f"{folder} holds no safetensors weights")
    for path in files:
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(file_hash(path)))
    return digest.hexdigest()
