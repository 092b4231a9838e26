"""What the door says about trackers, and where each of them sends what."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweeps.draft import Draft
from sweeps.local import absolute_path
from sweeps.paths import SweepPaths, is_remote
from sweeps.problems import Problem, show
from sweeps.spec import SweepSpec
from sweeps.track_spec import MLflowConfig, TensorBoardConfig, TrackConfig

URI_VARIABLE = "MLFLOW_TRACKING_URI"
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
EXPOSED = f"holds a password; keep it in {CREDENTIALS}"
"""What is said of MLFLOW_TRACKING_URI where it does."""
SQLITE = "sqlite:///"
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""Tracker -> the module that it needs; the extra has the tracker's name."""
SENT = "names, parameters, scores, telemetry and outcomes of all runs"


def check_trackers(draft: Draft) -> None:
    """Each tracker stands once, its package is here, and its address holds no credentials."""
    seen: set[str] = set()
    for index, tracker in enumerate(draft.spec.track):
        if tracker.type in seen:
            draft.wrong(("track", index), f"'{tracker.type}' stands twice; each tracker has one entry")
        seen.add(tracker.type)
        if (message := missing(tracker.type)) is not None:
            draft.wrong(("track", index), message)
        if isinstance(tracker, MLflowConfig):
            _check_address(draft, tracker, index)
            if is_remote(draft.spec.storage) and not (tracker.tracking_uri or os.environ.get(URI_VARIABLE)):
                draft.wrong(("track", index), "with remote storage it has no place by default; give tracking_uri")


def _check_address(draft: Draft, tracker: MLflowConfig, index: int) -> None:
    if tracker.tracking_uri is None and exposed(os.environ):
        draft.document.problems.append(Problem(URI_VARIABLE, EXPOSED, via="the environment"))
    elif tracker.tracking_uri is not None and _private(tracker.tracking_uri):
        where = ("track", index, "tracking_uri")
        draft.wrong(where, f"a password in an address goes into the ledger; export {CREDENTIALS} in the shell")
    elif tracker.tracking_uri is not None and not tracker.tracking_uri.strip():
        draft.wrong(("track", index, "tracking_uri"), f"{show(tracker.tracking_uri)} is empty; delete the line")


def exposed(environment: Mapping[str, str]) -> bool:
    """Whether the address in a shell's environment holds a password, which would go into files."""
    return _private(environment.get(URI_VARIABLE, ""))


def _private(uri: str) -> bool:
    try:
        return urlsplit(uri).password is not None
    except ValueError:
        return False


def missing(kind: str) -> str | None:
    """What to do about a tracker's package that is not installed; None where it is."""
    found = importlib.util.find_spec(PACKAGES[kind])
    if found is not None and found.origin is not None:  # a bare folder of that name (`./wandb`) is no package
        return None
    return f"'{kind}' needs a package that is not installed: pip install 'stockpot[{kind}]'"


def placed(
    trackers: Sequence[TrackConfig], folder: Path, paths: SweepPaths, environment: Mapping[str, str] = os.environ
) -> list[dict[str, Any]]:
    """The entries with every default filled in, JSON: a resumed sweep goes on where it began, whatever the shell says then.

    Args:
        trackers: as written.
        folder: the sweep file's; relative paths are relative to it.
        paths: the sweep's.
        environment: of the shell.
    """
    found = []
    for tracker in trackers:
        entry: dict[str, Any] = tracker.model_dump(mode="json")
        if isinstance(tracker, TensorBoardConfig):
            entry["log_dir"] = tracker.log_dir and str(absolute_path(tracker.log_dir, folder))
        elif isinstance(tracker, MLflowConfig):
            uri = tracker.tracking_uri or environment.get(URI_VARIABLE)
            entry["tracking_uri"] = _absolute(uri, folder) if uri else f"{SQLITE}{paths.root.parent / 'mlflow.db'}"
            entry["experiment_name"] = tracker.experiment_name or paths.name
        else:
            entry["project"] = tracker.project or paths.name
        found.append(entry)
    return found


def _absolute(uri: str, folder: Path) -> str:
    """A database file or a folder of runs, relative to the sweep file; addresses and words stay as they are."""
    if uri.startswith(SQLITE):
        return f"{SQLITE}{absolute_path(uri.removeprefix(SQLITE), folder)}"
    return str(absolute_path(uri, folder)) if uri.startswith(("./", "../", "/", "~")) else uri


def destination(tracker: TrackConfig, paths: SweepPaths) -> str:
    """Where a placed tracker sends to, in words."""
    if isinstance(tracker, TensorBoardConfig):
        return f"event files in {tracker.log_dir or paths.tensorboard}"
    if isinstance(tracker, MLflowConfig):
        return f"{tracker.tracking_uri}, experiment {tracker.experiment_name}"
    if tracker.mode == "offline":
        return f"files in {paths.root / 'wandb'}, for project {tracker.project}"
    owner = f" of {tracker.entity}" if tracker.entity else ""
    return f"Weights & Biases, project {tracker.project}{owner}"


def told(spec: SweepSpec, paths: SweepPaths) -> list[dict[str, str]]:
    """What `check` says of the trackers, JSON: `type`, `to`, `sends`."""
    return [{"type": each.type, "to": destination(each, paths), "sends": SENT} for each in spec.track]
