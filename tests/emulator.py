"""A terminal for tests: pyte with an alternate screen, alone or at the end of a pseudo-terminal with a real command."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyte

ALTERNATE = 1049


class Screen(pyte.Screen):
    """pyte's, which knows no alternate screen, with one; `alternate` says whether it is on, `hidden` the cursor."""

    alternate = False

    def set_mode(self, *modes: int, **kwargs: Any) -> None:
        if kwargs.get("private") and ALTERNATE in modes:
            self.alternate = True
            self._kept = [dict(self.buffer[y]) for y in range(self.lines)], (self.cursor.x, self.cursor.y)
            self.erase_in_display(2)
        super().set_mode(*modes, **kwargs)

    def reset_mode(self, *modes: int, **kwargs: Any) -> None:
        if kwargs.get("private") and ALTERNATE in modes:
            self.alternate = False
            rows, (x, y) = self._kept
            self.erase_in_display(2)
            for line, row in enumerate(rows[: self.lines]):
                self.buffer[line].update(row)
            self.cursor_position(y + 1, x + 1)
        super().reset_mode(*modes, **kwargs)

    @property
    def text(self) -> list[str]:
        """Its lines without blanks at the end, and without empty lines below."""
        lines = [line.rstrip() for line in self.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


class Console:
    """A command on a pseudo-terminal of its own session, as in a terminal window."""

    def __init__(
        self, argv: Sequence[str], cwd: Path, columns: int = 100, rows: int = 30, **environment: str | None
    ) -> None:
        self.master, slave = pty.openpty()
        self._set_size(columns, rows)
        settings = dict(os.environ, TERM="xterm-256color", LANG="C.UTF-8")
        for name in ("CI", "NO_COLOR", "LC_ALL", "LC_CTYPE"):
            settings.pop(name, None)
        for name, value in environment.items():
            settings.pop(name, None)
            if value is not None:
                settings[name] = value
        self.process = subprocess.Popen(
            argv, cwd=cwd, env=settings, stdin=slave, stdout=slave, stderr=slave, preexec_fn=_lead
        )
        os.close(slave)
        self.screen = Screen(columns, rows)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)

    def read(self, seconds: float) -> bool:
        """Show what comes for so long; False once the command's side is closed."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self.master], [], [], min(left, 0.2))[0]:
                continue
            try:
                chunk = os.read(self.master, 65536)
            except OSError:
                return False
            if not chunk:
                return False
            self.raw += chunk
            self._stream.feed(chunk)
        return True

    def await_(self, what: Callable[[str], object], seconds: float = 240) -> str:
        """Read until the screen's text satisfies `what`; the text."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            text = "\n".join(self.screen.text)
            if what(text):
                return text
            if not self.read(0.2):
                text = "\n".join(self.screen.text)
                assert what(text), f"the command ended with this on its terminal:\n{text}"
                return text
        raise AssertionError(f"not in {seconds} s; the terminal shows:\n" + "\n".join(self.screen.text))

    def end(self, seconds: float = 240) -> int:
        """Read to the command's end; its exit status."""
        until = time.monotonic() + seconds
        while self.read(0.5) and time.monotonic() < until:
            pass
        return self.process.wait(timeout=max(1.0, until - time.monotonic()))

    def resize(self, columns: int, rows: int) -> None:
        """As a window that is dragged."""
        self._set_size(columns, rows)
        self.screen.resize(rows, columns)

    def type(self, keys: bytes) -> None:
        """Press keys; b'\\x03' is Ctrl-C."""
        os.write(self.master, keys)

    def close(self) -> None:
        """Close the window: the kernel hangs the session up."""
        os.close(self.master)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _lead() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def feed(screen: Screen, *texts: str) -> list[str]:
    """Write texts to a screen as a terminal driver does (a newline returns the carriage); its lines."""
    stream = pyte.Stream(screen)
    for text in texts:
        stream.feed(text.replace("\n", "\r\n"))
    return screen.text
