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
from dataclasses import dataclass, field
from pathlib import Path

from cluster.base import ClusterError
from cluster.local import ENVIRONMENT, OBJECT_STORE_BYTES
from cluster.processes import end

START_SECONDS = 90.0
PR_SET_PDEATHSIG = 1
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _folders: list[Path] = field(default_factory=list)

    def start(self, count: int) -> None:
        """Start the nodes, the head first where there is to be one.

        Raises:
            ClusterError: if one does not come up, with the end of what it printed.
        """
        self.address = self.join or ""
        for number in range(count):
            head = number == 0 and self.join is None
            port = _free_port() if head else 0
            folder, process = self._spawn(port if head else None)
            if head:
                self.address = f"{self._await_head(folder, process, port)}:{port}"
            else:
                self._await_words(folder, process, "Ray runtime started")

    def alive(self) -> bool:
        """Whether all nodes still run."""
        return all(process.poll() is None for process in self._processes)

    def close(self) -> None:
        """End every node that was started here with all its processes, and remove its folder."""
        end([process.pid for process in self._processes if process.poll() is None])
        for process in self._processes:
            process.wait()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._processes.clear()
        self._folders.clear()

    def _spawn(self, port: int | None) -> tuple[Path, subprocess.Popen[bytes]]:
        folder = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
        self._folders.append(folder)
        words = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        words += [f"--num-cpus={self.cpus}", f"--num-gpus={self.gpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        words += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        words += [] if self.host is None else [f"--node-ip-address={self.host}"]
        if port is None:
            words += [f"--address={self.address}"]
        else:
            words += ["--head", f"--port={port}", f"--temp-dir={folder / 'ray'}"]
            words += ["--include-dashboard=false"] if self.dashboard is None else self._dashboard_words()
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        own = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, **ENVIRONMENT, **secret, "PATH": own}
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
        self._processes.append(process)
        return folder, process

    def _dashboard_words(self) -> list[str]:
        return ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]

    def _await_head(self, folder: Path, process: subprocess.Popen[bytes], port: int) -> str:
        """Wait for the head; the address that it gave itself."""
        text = _COLOUR.sub("", self._await_words(folder, process, "Ray runtime started"))
        told = re.search(r"Local node IP: (\S+)", text)
        if self.host is None and told is None:
            self.close()
            raise ClusterError("the head does not say its address; give it with --host")
        return self.host or str(told and told[1])

    def _await_words(self, folder: Path, process: subprocess.Popen[bytes], words: str) -> str:
        until = time.monotonic() + START_SECONDS
        while True:
            text = (folder / "log").read_text(encoding="utf-8", errors="replace")
            if words in text:
                return text
            if process.poll() is not None or time.monotonic() > until:
                last = "\n".join(text.strip().splitlines()[-5:]) or "it printed nothing"
                self.close()
                raise ClusterError(f"a node did not start; the end of what it printed:\n{last}")
            time.sleep(0.1)


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, also after a kill -9 (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
        return port
