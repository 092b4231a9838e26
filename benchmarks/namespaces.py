"""Several hosts on one machine: network namespaces joined by a bridge, each of which can be cut off and healed. Needs root.

    with Hosts(2) as hosts:
        subprocess.Popen(hosts.command(1, ["ray", "start", ...]))
        hosts.cut(1); hosts.heal(1)

Source: ip-netns(8), veth(4).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from types import TracebackType


class Hosts:
    """Namespaces with an address each; gone at the end of the `with`.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        mark = f"{os.getpid() % 100000:x}"
        self._bridge = f"sb{mark}"
        self._names = [f"sp{mark}-{number}" for number in range(count)]
        self._ends = [f"sv{mark}-{number}" for number in range(count)]
        self._net = f"10.77.{os.getpid() % 250}"

    def __enter__(self) -> Hosts:
        """Make them.

        Raises:
            SystemExit: with a message, where this user may not.
        """
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise SystemExit("network namespaces need root and the program `ip` (iproute2)")
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self._net}.1/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for number, (name, end) in enumerate(zip(self._names, self._ends, strict=True)):
                _ip("netns", "add", name)
                _ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", name)
                _ip("link", "set", end, "master", self._bridge, "up")
                _ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
                for device in ("eth0", "lo"):
                    _ip("-n", name, "link", "set", device, "up")
                _ip("-n", name, "route", "add", "default", "via", f"{self._net}.1")
        except subprocess.CalledProcessError as error:
            self._remove()
            raise SystemExit(f"this machine makes no network namespaces: {error.stderr.strip()}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove them; what still runs in them keeps running, without a network."""
        self._remove()

    def address(self, number: int) -> str:
        """Of a host."""
        return f"{self._net}.{number + 2}"

    def command(self, number: int, words: Sequence[str]) -> list[str]:
        """A command as it is run on a host."""
        return ["ip", "netns", "exec", self._names[number], *words]

    def cut(self, number: int) -> None:
        """Cut a host off from all others, as a pulled cable does."""
        _ip("link", "set", self._ends[number], "down")

    def heal(self, number: int) -> None:
        """Plug it in again."""
        _ip("link", "set", self._ends[number], "up")

    def _remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for end in [*self._ends, self._bridge]:
            subprocess.run(["ip", "link", "del", end], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
