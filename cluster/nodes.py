"""Ray nodes on this machine, for `stockpot cluster up`: started by us with a token, ended by us by their ids."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.base import HEALTH, ClusterError
from cluster.local import ENVIRONMENT, OBJECT_STORE_BYTES
from cluster.processes import end

START_SECONDS = 240.0
"""How long a node may take to start: Ray takes minutes on a machine that is busy with other things."""
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 60.0
"""So much longer before each further start of a node, and the longest pause: a node that is cut off tries until it heals."""
SETTLED_SECONDS = 60.0
PR_SET_PDEATHSIG = 1
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class LocalNode:
    """One node.

    Attributes:
        process: `ray start --block`.
        folder: its own, with the log.
        head: whether it is the cluster's head.
        tries: how often it was started since it last ran for `SETTLED_SECONDS`.
        since: when it was started last (`time.monotonic`).
    """

    process: subprocess.Popen[bytes]
    folder: Path
    head: bool
    tries: int = 1
    since: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")


@dataclass
class LocalNodes:
    """Ray nodes that run until `close`.

    Attributes:
        token: file of the cluster's token.
        cpus: CPU threads that each node counts.
        gpus: GPUs of each.
        join: `host:port` of a head elsewhere; None raises one here.
        host: address that other machines know this one by; default: Ray's guess.
        dashboard: port of the dashboard and of Ray Jobs on loopback; None for none.
        address: `host:port` of the head, once there is one.
    """

    token: Path
    cpus: int
    gpus: int = 0
    join: str | None = None
    host: str | None = None
    dashboard: int | None = None
    address: str = ""
    _nodes: list[LocalNode] = field(default_factory=list)

    def start(self, count: int, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Start the nodes, the head first where there is to be one.

        Args:
            count: how many.
            stopped: whether somebody does not want them any more: no further one is started then, none is waited for.

        Returns:
            Whether all of them run; else `close` ends those that were started.

        Raises:
            ClusterError: if one does not come up, with the end of what it printed.
        """
        self.address = self.join or ""
        try:
            for number in range(count):
                if stopped():
                    return False
                head = number == 0 and self.join is None
                port = _free_port() if head else 0
                node = self._spawn(port if head else None)
                self._nodes.append(node)
                text = _await_start(node, stopped)
                if text is None:
                    return False
                if head:
                    self.address = f"{self._own_address(text)}:{port}"
        except BaseException:
            self.close()
            raise
        return True

    def mend(self) -> list[str]:
        """Start nodes again that have ended by themselves: Ray's own do so when they were cut off for a while.

        Returns:
            What was done, for a person.

        Raises:
            ClusterError: if the head has ended, and it was started here.
        """
        told = []
        for place, node in enumerate(self._nodes):
            now = time.monotonic()
            if node.process.poll() is None:
                if now - node.since > SETTLED_SECONDS:
                    node.tries = 1
                continue
            if node.head:
                raise ClusterError(
                    f"the head has ended, and with it the cluster; the end of its log:\n{_last(node.log)}"
                )
            if now - node.since < min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * (node.tries - 1)):
                continue
            shutil.rmtree(node.folder, ignore_errors=True)
            self._nodes[place] = again = self._spawn(None)
            again.tries = node.tries + 1
            told.append("a node has ended by itself, and is started again" + f" (try {node.tries})" * (node.tries > 1))
        return told

    def close(self) -> None:
        """End every node that was started here with all its processes, and remove its folder."""
        end([node.process.pid for node in self._nodes if node.process.poll() is None])
        for node in self._nodes:
            node.process.wait()
            shutil.rmtree(node.folder, ignore_errors=True)
        self._nodes.clear()

    def _spawn(self, port: int | None) -> LocalNode:
        """Begin to start a node, the head where there is a port for it."""
        folder = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
        words = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        words += [f"--num-cpus={self.cpus}", f"--num-gpus={self.gpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        words += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        words += [] if self.host is None else [f"--node-ip-address={self.host}"]
        words += [f"--temp-dir={folder / 'ray'}"]
        if port is None:
            words += [f"--address={self.address}"]
        else:
            words += ["--head", f"--port={port}"]
            words += ["--include-dashboard=false"] if self.dashboard is None else self._dashboard_words()
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        own = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**HEALTH, **os.environ, **ENVIRONMENT, **secret, "PATH": own}
        for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
            environment.pop(name, None)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        return LocalNode(process, folder, head=port is not None)

    def _dashboard_words(self) -> list[str]:
        return ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]

    def _own_address(self, text: str) -> str:
        """The address that the head gave itself."""
        told = re.search(r"Local node IP: (\S+)", _COLOUR.sub("", text))
        if self.host is None and told is None:
            raise ClusterError("the head does not say its address; give it with --host")
        return self.host or str(told and told[1])


def _await_start(node: LocalNode, stopped: Callable[[], bool]) -> str | None:
    """Wait until a node runs; what it printed, None where that is not wanted any more.

    Raises:
        ClusterError: if it ended, or the time is up.
    """
    until = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in (text := node.log):
        if stopped():
            return None
        if node.process.poll() is not None or time.monotonic() > until:
            raise ClusterError(f"a node did not start; the end of what it printed:\n{_last(text)}")
        time.sleep(0.1)
    return text


def _last(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-5:]) or "it printed nothing"


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, also after a kill -9 (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
        return port
