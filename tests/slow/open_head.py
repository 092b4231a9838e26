"""A Ray head that asks nobody for a token, as `ray start --head` without one raises it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from awaiting import free_port

from cluster.processes import end

SECONDS = 240.0


@dataclass(frozen=True)
class OpenHead:
    """Where it listens.

    Attributes:
        address: `host:port`.
        dashboard: port of its dashboard, which listens on every interface; 0 for none.
    """

    address: str
    dashboard: int


@contextlib.contextmanager
def open_head(*, dashboard: bool = False) -> Iterator[OpenHead]:
    """Raise it, and end it by its id."""
    folder = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    port, shown = free_port(), free_port() if dashboard else 0
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    words += [f"--port={port}", f"--temp-dir={folder / 'ray'}", "--num-cpus=1", "--object-store-memory=100000000"]
    words += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    words += [f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=0.0.0.0"]
    words += [f"--dashboard-port={shown}"] if dashboard else []
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )  # jobs call python and stockpot
    env = {**bare, "PATH": own, "RAY_AUTH_MODE": "disabled"}
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(words, stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        until = time.monotonic() + SECONDS
        while "Ray runtime started" not in (text := (folder / "log").read_text()):
            assert head.poll() is None, text
            assert time.monotonic() < until, text
            time.sleep(0.2)
        yield OpenHead(f"127.0.0.1:{port}", shown)
    finally:
        end([head.pid])
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
