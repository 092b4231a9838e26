"""Pictures on an emulated terminal: redrawn in place or on the alternate screen, resized, without colours, in ASCII."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from emulator import Screen, feed
from simulated_sweeps import events_of, seen_at, simulate

from sweeps.events import Event
from sweeps.glyphs import ASCII, UNICODE
from sweeps.load import LoadedSweep
from sweeps.progress import ProgressView
from sweeps.screen import draw, plain
from sweeps.terminal import ABOVE, Gpus, Terminal, can_draw, charset_of, let_go


class Stream(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedSweep, list[Event]]:
    loaded = simulate(tmp_path_factory.mktemp("sim"))
    return loaded, events_of(loaded)


def terminal(columns: int, rows: int, alternate: bool = False, **environment: str) -> Terminal:
    made = Terminal(Stream(), alternate, environment)
    made.size = lambda: (columns, rows)  # type: ignore[method-assign]
    return made


def test_redrawing_in_place_keeps_the_messages_above(sweep: tuple[LoadedSweep, list[Event]]) -> None:
    loaded, events = sweep
    screen, own = Screen(100, 30), terminal(100, 30)
    lines: list[str] = []
    for count, message in ((20, "one\n"), (60, ""), (100, "two\n"), (140, "")):
        _, view, now = seen_at(loaded, events[:count])
        lines = feed(screen, own.frame(view, [message] if message else [], now))
    expected = [plain(line) for line in draw(view, 99, 30 - ABOVE, now)]
    assert lines == ["one", "two", "", *(line.rstrip() for line in expected)]
    assert not screen.alternate
    ended = feed(screen, own.close(["three\n"], ["gsm8k-lora [####] 100%"]))
    assert ended == ["one", "two", "three", "gsm8k-lora [####] 100%"]


def test_a_screen_that_did_not_change_costs_nothing(sweep: tuple[LoadedSweep, list[Event]]) -> None:
    loaded, events = sweep
    _, view, now = seen_at(loaded, events[:80])
    for alternate in (False, True):
        own = terminal(80, 24, alternate)
        first = own.frame(view, [], now)
        assert own.frame(view, [], now) == ""
        later = own.frame(view, [], now + 1)
        assert 0 < len(later) < len(first) / 2


def test_more_messages_than_rows_scroll_away(sweep: tuple[LoadedSweep, list[Event]]) -> None:
    loaded, events = sweep
    screen, own = Screen(80, 24), terminal(80, 24)
    _, view, now = seen_at(loaded, events[:80])
    feed(screen, own.frame(view, [], now))
    for i in range(40):
        feed(screen, own.frame(view, [f"message {i}\n"], now))
    lines = screen.text
    top = [line for line in lines if line.startswith("message")]
    assert top[-1] == "message 39"
    assert sum(line.startswith("best ") for line in lines) == 1
    assert lines[len(top)] == ""
    assert lines[len(top) + 1].startswith("gsm8k-lora")


@pytest.mark.parametrize("alternate", [False, True])
def test_a_resize_leaves_no_rubbish(sweep: tuple[LoadedSweep, list[Event]], alternate: bool) -> None:
    loaded, events = sweep
    own = terminal(120, 40, alternate)
    screen = Screen(120, 40)
    _, view, now = seen_at(loaded, events[:120])
    feed(screen, own.frame(view, ["hello\n"], now))
    for columns, rows in ((70, 20), (60, 10), (200, 60), (90, 24)):
        own.size = lambda size=(columns, rows): size  # type: ignore[method-assign, misc]
        screen.resize(rows, columns)
        lines = feed(screen, own.frame(view, [], now))
        room = rows if alternate else rows - ABOVE
        drawn = [plain(line).rstrip() for line in draw(view, columns - 1, room, now)]
        assert [line for line in lines if line][-len(list(filter(None, drawn))) :] == [line for line in drawn if line]
        assert sum(line.startswith("best ") for line in lines) == 1


def test_the_alternate_screen_is_left_as_it_was(sweep: tuple[LoadedSweep, list[Event]]) -> None:
    loaded, events = sweep
    screen, own = Screen(80, 24), terminal(80, 24, alternate=True)
    feed(screen, "$ stockpot status x --watch\n")
    _, view, now = seen_at(loaded, events[:80])
    shown = feed(screen, own.frame(view, [], now))
    assert screen.alternate
    assert shown[0].startswith("gsm8k-lora")
    left = feed(screen, own.close([], []))
    assert not screen.alternate
    assert left == ["$ stockpot status x --watch"]
    assert own.close([], []).count("h") <= 2


def test_no_color_and_ascii(sweep: tuple[LoadedSweep, list[Event]]) -> None:
    loaded, events = sweep
    _, view, now = seen_at(loaded, events[:120])
    assert "\x1b[36m" in terminal(100, 30).frame(view, [], now)
    gray = terminal(100, 30, NO_COLOR="1").frame(view, [], now)
    assert "\x1b[3" not in gray
    assert "\x1b[1m" in gray
    assert terminal(100, 30, LANG="C").frame(view, ["± 漢\n"], now).isascii()


def test_gpus_are_asked_rarely_and_not_again_once_it_failed(
    sweep: tuple[LoadedSweep, list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, events = sweep
    _, view, now = seen_at(loaded, events[:120])
    asked, command = tmp_path / "asked", tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\necho x >> {asked}\necho '87, 34816, 143360'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gpus = Gpus()
    assert gpus.words(view, now) == ""
    here = replace(view, local_gpus=True)
    assert [gpus.words(here, now + second) for second in range(5)] == ["GPU 87 % 34/140 GiB"] * 5
    assert asked.read_text() == "x\n"
    command.write_text(f"#!/bin/sh\necho x >> {asked}\nexit 9\n")
    assert [gpus.words(here, now + second) for second in (6, 20, 40)] == ["", "", ""]
    assert asked.read_text() == "x\nx\n"


def test_where_a_screen_can_be_drawn() -> None:
    assert can_draw(Stream(), {"TERM": "xterm"})
    assert not can_draw(io.StringIO(), {"TERM": "xterm"})
    assert not can_draw(Stream(), {"TERM": "dumb"})
    assert not can_draw(Stream(), {})
    assert not can_draw(Stream(), {"TERM": "xterm", "CI": "true"})
    assert can_draw(Stream(), {"TERM": "xterm", "CI": "false"})


@pytest.mark.parametrize(
    ("environment", "charset"),
    [
        ({"LANG": "en_US.UTF-8"}, UNICODE),
        ({}, UNICODE),
        ({"LANG": "C"}, ASCII),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, ASCII),
        ({"LANG": "C.UTF-8", "LC_CTYPE": "C.UTF-8"}, UNICODE),
        ({"LC_ALL": "POSIX", "LANG": "en_US.UTF-8"}, ASCII),
    ],
)
def test_the_locale_chooses_the_characters(environment: dict[str, str], charset: object) -> None:
    assert charset_of(Stream(), environment) is charset


def test_latin1_streams_get_ascii() -> None:
    stream = Stream()
    stream.encoding = "iso-8859-1"  # type: ignore[misc]
    assert charset_of(stream, {"LANG": "en_US.UTF-8"}) is ASCII


def test_a_view_draws_what_it_is_given(sweep: tuple[LoadedSweep, list[Event]], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, events = sweep
    monkeypatch.setenv("LINES", "30")
    monkeypatch.setenv("COLUMNS", "100")
    state, _, _ = seen_at(loaded, events[:120])
    out = Stream()
    with ProgressView(out, live=True, hint="Ctrl-C stops") as view:
        view.on_message("warning: few rows")
        view.on_state(state, loaded, lambda after: [event for event in events[:120] if event.seq > after])
    lines = feed(Screen(100, 30), out.getvalue())
    assert lines[0] == "warning: few rows"
    assert lines[1].startswith("gsm8k-lora [")
    assert len(lines) == 3


def test_a_pipe_that_closed_is_let_go(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    view = ProgressView(stream)
    os.close(reader)
    view.on_message("nobody reads this")
    assert view.gone
    stream.write("nor this")
    stream.flush()
    let_go(stream)
    stream.close()
