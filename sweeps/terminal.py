"""The terminal that a screen is put on: what it can do, and the bytes that turn one picture into the next.

Only lines that changed are written, in one go and between the marks of a synchronised update, so nothing flickers. Below
running text the screen is redrawn in place and messages go above it; on the alternate screen it stands alone. The size is
looked up for every picture, so a resize shows at the next one and no signal is needed.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from sweeps.glyphs import ASCII, UNICODE, Charset, Line, clean, clip

if TYPE_CHECKING:
    from sweeps.overview import Overview

STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "magenta": "35",
    "cyan": "36",
}
PLAIN_STYLES = {"bold", "dim"}
"""Those that are no colour, for NO_COLOR."""
ABOVE = 4
"""Rows that messages, and the empty line below them, keep above a screen that is drawn in place."""
REMEMBERED = 100
"""Messages that are written again after the terminal became narrower."""
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"


def can_draw(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a screen can be drawn: a terminal, no dumb one, and no CI that plays one."""
    if not stream.isatty() or environment.get("TERM", "") in ("", "dumb"):
        return False
    return environment.get("CI", "").lower() in ("", "0", "false")


def charset_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Charset:
    """Unicode where both the stream and the locale have it, else ASCII."""
    encoding = (stream.encoding or "utf-8").lower().replace("-", "")
    locale = environment.get("LC_ALL") or environment.get("LC_CTYPE") or environment.get("LANG") or ""
    if locale == "C.UTF-8" and not environment.get("LC_ALL"):
        locale = environment.get("LANG") or locale  # Python itself sets LC_CTYPE where the locale is C (PEP 538)
    return ASCII if encoding != "utf8" or locale in ("C", "POSIX") else UNICODE


class Terminal:
    """Makes pictures for one terminal. It writes nothing itself: `frame` and `close` give what is to be written.

    Args:
        stream: for its size and encoding.
        alternate: draw on the alternate screen.
        environment: NO_COLOR and the locale.
    """

    def __init__(self, stream: TextIO, alternate: bool = False, environment: Mapping[str, str] = os.environ) -> None:
        self.alternate = alternate
        self._stream = stream
        self._charset = charset_of(stream, environment)
        self._colored = not environment.get("NO_COLOR")
        self._size = (0, 0)
        self._drawn: list[str] = []
        self._messages: deque[str] = deque(maxlen=REMEMBERED)
        self._open = False
        self._gpus = Gpus()

    def size(self) -> tuple[int, int]:
        """Columns and rows now."""
        try:
            found = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError, io.UnsupportedOperation):
            found = shutil.get_terminal_size()
        return found.columns or 80, found.lines or 24

    def frame(self, view: Overview | None, messages: Sequence[str], now: float) -> str:
        """What turns the last picture into one of `view`, with the messages above it."""
        columns, rows = size = self.size()
        lines = []
        if view is not None:
            from sweeps.screen import draw

            view = replace(view, gpus=self._gpus.words(view, now))
            lines = draw(view, columns - 1, rows if self.alternate else rows - ABOVE, now, self._charset)
        drawn = [self._styled(line) for line in lines]
        if drawn and not self.alternate:
            drawn.insert(0, "")
        made = self._over(drawn, size) if self.alternate else self._below(drawn, messages, size)
        self._drawn, self._size = drawn, size
        return f"{_BEGIN}{made}{_END}" if made else ""

    def close(self, messages: Sequence[str], ending: Sequence[str]) -> str:
        """What leaves the terminal as it was: the screen away, messages and `ending` below the text before."""
        if self.alternate:
            self._drawn = []
            return "\x1b[?25h\x1b[?1049l" if self._open else ""
        columns, _ = self.size()
        lines = [clip(self._shown(clean(line)), columns - 1, self._charset.cut) + "\n" for line in ending]
        made = self._below([], messages, self.size()) + "".join(lines)
        self._drawn = []
        return made

    def _over(self, drawn: list[str], size: tuple[int, int]) -> str:
        """The alternate screen, line by line."""
        made = []
        if not self._open:
            self._open = True
            made.append("\x1b[?1049h\x1b[?25l")
        before = self._drawn
        if size != self._size:
            before = []
            made.append("\x1b[2J")
        for row, line in enumerate(drawn):
            if row >= len(before) or before[row] != line:
                made.append(f"\x1b[{row + 1};1H\x1b[2K{line}")
        if len(drawn) < len(before):
            made.append(f"\x1b[{len(drawn) + 1};1H\x1b[J")
        return "".join(made)

    def _below(self, drawn: list[str], messages: Sequence[str], size: tuple[int, int]) -> str:
        """In place: the cursor stands below the last picture."""
        narrower = bool(self._size[0]) and size[0] < self._size[0]
        self._messages.extend(messages)
        if narrower and self._drawn:
            # A terminal may have wrapped the old lines, or not: nobody knows where they are, so the screen begins anew.
            room = max(1, size[1] - len(drawn) - 1)
            again = "".join(self._messages).splitlines(keepends=True)[-room:]
            return "\x1b[H\x1b[2J" + self._shown("".join(again)) + "".join(f"{line}\n" for line in drawn)
        up = min(len(self._drawn), size[1] - 1)
        made = [f"\r\x1b[{up}A" if up else ""]
        before = self._drawn
        if messages or len(before) != up:
            made.append(("\x1b[J" if up else "") + self._shown("".join(messages)))
            before = []
        if not messages and before == drawn:
            return ""
        for row, line in enumerate(drawn):
            made.append("\n" if row < len(before) and before[row] == line else f"\x1b[2K{line}\n")
        if self._drawn:
            made.append("\x1b[J")
        return "".join(made)

    def _shown(self, text: str) -> str:
        if self._charset is UNICODE:
            return text
        return text.replace("±", "+-").encode("ascii", "replace").decode()

    def _styled(self, line: Line) -> str:
        return "".join(self._sgr(text, style) for text, style in line)

    def _sgr(self, text: str, style: str) -> str:
        words = [word for word in style.split() if self._colored or word in PLAIN_STYLES]
        if not words:
            return text
        return f"\x1b[{';'.join(STYLES[word] for word in words)}m{text}\x1b[0m"


class Gpus:
    """How busy this machine's GPUs are, by nvidia-smi; asked every few seconds at most, and never again after it failed."""

    EVERY = 5.0

    def __init__(self) -> None:
        self._asked = float("-inf")
        self._words = ""
        self._command: str | None = shutil.which("nvidia-smi")

    def words(self, view: Overview, now: float) -> str:
        """`GPU 87 %, 34/139 GiB`; nothing where the sweep uses none, or those of other machines."""
        if self._command is None or not view.local_gpus:
            return ""
        if now - self._asked >= self.EVERY:
            self._asked = now
            self._words = self._ask(self._command)
        return self._words

    def _ask(self, command: str) -> str:
        import subprocess

        query = ["--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run([command, *query], capture_output=True, text=True, timeout=2, check=True)
            rows = [[float(cell) for cell in line.split(",")] for line in done.stdout.strip().splitlines()]
        except (OSError, subprocess.SubprocessError, ValueError):
            self._command = None
            return ""
        told = [f"{busy:.0f} % {used / 1024:.0f}/{total / 1024:.0f} GiB" for busy, used, total in rows[:8]]
        return f"GPU {', '.join(told)}" if told else ""


def let_go(stream: TextIO) -> None:
    """The reader went away: let what is still written to it, and to standard streams on the same terminal, go nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        own = stream.fileno()
        gone = os.fstat(own)
        for descriptor in {own, 1, 2}:
            with contextlib.suppress(OSError):
                other = os.fstat(descriptor)
                if (other.st_dev, other.st_ino, other.st_rdev) == (gone.st_dev, gone.st_ino, gone.st_rdev):
                    os.dup2(null, descriptor)
    os.close(null)


@contextlib.contextmanager
def outliving() -> Iterator[None]:
    """Let the process, and those that it starts, outlive their terminal (SIGHUP), as `nohup` does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
