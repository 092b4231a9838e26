"""The request that asks a driver to stop: a file in the sweep's folder, or a text in remote storage that becomes one."""

from __future__ import annotations

import json
import os
import time

from sweeps.paths import SweepPaths
from sweeps.records import write_aside

GRACE_SECONDS = 10.0
"""How long running trials may take to their next report, where nobody says."""


def stop_text(grace: float = GRACE_SECONDS) -> bytes:
    """What a request says.

    Args:
        grace: seconds that running trials may take to their next report.
    """
    return json.dumps({"pid": os.getpid(), "time": time.time(), "grace": grace}).encode()


def request_stop(paths: SweepPaths, text: bytes) -> None:
    """Leave the file that the driver polls for, written aside and moved."""
    write_aside(paths.stop_request, text)


def take_request(paths: SweepPaths, since: float) -> float | None:
    """Take the request away, where there is one.

    Args:
        paths: the sweep's.
        since: seconds since the epoch; a request that is older was meant for another driver.

    Returns:
        The seconds of grace that it gives; None where nobody asked.
    """
    try:
        asked, text = paths.stop_request.stat().st_mtime, paths.stop_request.read_bytes()
        paths.stop_request.unlink()
    except FileNotFoundError:
        return None
    return _grace(text) if asked >= since else None


def _grace(text: bytes) -> float:
    try:
        grace = float(json.loads(text)["grace"])
    except (ValueError, KeyError, TypeError):
        return GRACE_SECONDS
    return grace if grace >= 0 else GRACE_SECONDS
