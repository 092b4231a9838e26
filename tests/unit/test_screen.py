"""The screen as lines: within its width and height at every size, safe whatever texts are in it, and saying what is so."""

from __future__ import annotations

import time
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_sweeps import events_of, seen_at, simulate
from wcwidth import wcswidth

from sweeps.events import Event
from sweeps.glyphs import ASCII, UNICODE, bar, bounds, cells, clean, clip, fit, sparkline
from sweeps.load import LoadedSweep
from sweeps.news import Item
from sweeps.overview import Overview
from sweeps.screen import draw, plain

SIZES = [(60, 10), (60, 24), (80, 24), (100, 30), (120, 40), (200, 60)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedSweep, list[Event]]:
    loaded = simulate(tmp_path_factory.mktemp("sim"))
    return loaded, events_of(loaded)


@pytest.fixture
def half(sweep: tuple[LoadedSweep, list[Event]]) -> tuple[Overview, float]:
    loaded, events = sweep
    _, view, now = seen_at(loaded, events[: len(events) // 2])
    return view, now


def text_of(view: Overview, width: int, height: int, now: float, charset=UNICODE) -> list[str]:
    return [plain(line) for line in draw(view, width, height, now, charset)]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_line_fits_at_every_size(
    sweep: tuple[LoadedSweep, list[Event]], share: float, width: int, height: int
) -> None:
    loaded, events = sweep
    _, view, now = seen_at(loaded, events[: max(2, int(share * len(events)))])
    for charset in (UNICODE, ASCII):
        lines = text_of(view, width, height, now, charset)
        assert 4 <= len(lines) <= height
        for line in lines:
            assert wcswidth(line) <= width, line
            assert clean(line) == line
        assert charset is UNICODE or all(line.isascii() for line in lines)


def test_what_the_screen_says(half: tuple[Overview, float]) -> None:
    view, now = half
    lines = text_of(view, 120, 40, now)
    shot = view.shot
    assert lines[0].startswith("gsm8k-lora  running  ")
    assert "ETA " in lines[0]
    assert "then final step" in lines[0]
    assert lines[1].startswith(f"best  {shot['best']['value']:.4g} ± 0.01 tune/loss ↓  {shot['best']['trial']} at ")
    assert lines[2].endswith(
        f" {shot['resource']['done'] / (shot['resource']['done'] + shot['ahead']):.0%} of "
        f"{shot['resource']['done'] + shot['ahead']} units"
    )
    assert f"{shot['trials']['tried']}/24 trials" in lines[3]
    assert f"{shot['trials']['failed']} failed  (" in lines[3]
    assert lines[4].startswith("slots ")
    assert "/4 busy, 1 CPU and 0.5 GPUs each" in lines[4]
    assert lines[-1] == "Ctrl-C stops"
    assert " ".join(lines[6].split()).startswith("run state units loss ↓ value ")


def test_running_rows_come_first_then_the_best_and_the_rest_is_counted(half: tuple[Overview, float]) -> None:
    view, now = half
    lines = text_of(view, 100, 24, now)
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("run ")) + 1
    end = next(i for i, line in enumerate(lines) if line.startswith("… "))
    states = [line[2:].split()[1] for line in lines[start:end]]
    assert states == sorted(states, key=lambda state: state != "running" and (state == "failed") + 1)
    assert states.count("running") == view.phases["running"]
    left = sum(view.phases.values()) - (end - start)
    assert lines[end].startswith(f"… {left} more: ")
    assert sum(line.startswith("★") for line in lines) == 1


def test_a_failed_row_says_why_without_its_escapes(sweep: tuple[LoadedSweep, list[Event]]) -> None:
    loaded, events = sweep
    _, view, now = seen_at(loaded, events)
    failed = [line for line in text_of(view, 140, 60, now) if "user: bad" in line and " failed " in line]
    assert failed
    assert all("bad?[2J?]0;title? text 漢字漢字" in line for line in failed)


def test_narrow_screens_keep_what_matters(half: tuple[Overview, float]) -> None:
    view, now = half
    for width, heads in (
        (60, "run state value"),
        (80, "run state loss value time"),
        (100, "run units/s"),
        (160, "parameters"),
    ):
        head = next(line for line in text_of(view, width, 24, now) if line.lstrip().startswith("run "))
        assert all(word in head.split() for word in heads.split()), (width, head)
    assert len(text_of(view, 60, 10, now)) == 10
    assert len(text_of(view, 1, 1, now)) <= 4


def test_a_diverged_run_shows_its_gap(sweep: tuple[LoadedSweep, list[Event]]) -> None:
    loaded, events = sweep
    _, view, now = seen_at(loaded, events)
    row = replace(view.rows[0], series=(2.0, float("nan")), value=2.0, phase="waiting")
    lines = text_of(replace(view, rows=(row, *view.rows[1:])), 100, 30, now)
    assert any("×" in line for line in lines)


def test_a_long_silence_is_told(half: tuple[Overview, float]) -> None:
    view, now = half
    assert "quiet" not in text_of(view, 120, 30, now)[3]
    assert "quiet for 12 min" in text_of(view, 120, 30, now + 12 * 60)[3]


def test_the_clock_runs_on_between_snapshots(half: tuple[Overview, float]) -> None:
    view, now = half
    assert text_of(view, 120, 30, now)[0] != text_of(view, 120, 30, now + 60)[0]
    over = replace(view, shot={**view.shot, "state": "finished"})
    assert text_of(over, 120, 30, now)[0] == text_of(over, 120, 30, now + 60)[0]


def test_news_and_hints_give_way_on_a_low_screen(half: tuple[Overview, float]) -> None:
    view, now = half
    view = replace(view, news=(Item(now, "0003 failed (oom): no memory", "bad"),))
    assert any("no memory" in line for line in text_of(view, 100, 20, now))
    assert not any("no memory" in line for line in text_of(view, 100, 12, now))
    assert "Ctrl-C" not in "".join(text_of(view, 100, 12, now))


def test_the_stages_after_the_trials_show_their_steps(sweep: tuple[LoadedSweep, list[Event]]) -> None:
    loaded, events = sweep
    end = [event for event in events if event.kind not in ("driver_ended", "sweep_finished")]
    run = next(event.body["run"] for event in events if event.kind == "reported")
    soup = [
        (
            "soup_started",
            {"soup": "greedy-1", "method": "greedy", "metric": "select/loss", "ingredients": [{"run": run}]},
        ),
        ("soup_decided", {"soup": "greedy-1", "run": run, "decision": "start", "score": 1.25}),
    ]
    final = [
        ("soup_finished", {"soup": "greedy-1", "ingredients": [], "folder": "", "reason": "only one \x1b[1mrun"}),
        ("final_frozen", {"candidates": [{"role": "winner"}]}),
        (
            "verdict",
            {"left": "soup", "right": "winner", "metric": "test/loss", "difference": "inf", "better": "neither"},
        ),
    ]
    more = [Event(kind, body, 10_000 + i, end[-1].time) for i, (kind, body) in enumerate([*soup, *final])]
    _, view, now = seen_at(loaded, [*end, *more[:2]])
    text = "\n".join(text_of(view, 100, 30, now))
    assert "making the soup" in text
    assert f"+ {run[:4]} start 1.25" in text
    _, view, now = seen_at(loaded, [*end, *more])
    text = "\n".join(text_of(view, 100, 30, now))
    assert "final step" in text
    assert "no soup: only one ?[1mrun" in text
    assert ". final step: winner, not scored yet" in text
    assert "soup - winner on test/loss: +inf, no difference shown" in text


def test_seeds_have_rows_of_their_own(tmp_path: Path) -> None:
    loaded = simulate(tmp_path, trials=4, seeds="[0, 1]")
    _, view, now = seen_at(loaded, events_of(loaded))
    seconds = [row.short for row in view.rows if row.short.endswith(".1")]
    assert seconds
    assert any(seconds[0] in line for line in text_of(view, 100, 40, now))


def test_a_sweep_that_has_only_begun_can_be_drawn(sweep: tuple[LoadedSweep, list[Event]]) -> None:
    loaded, events = sweep
    for count in (1, 2):
        _, view, now = seen_at(loaded, events[:count])
        lines = text_of(view, 80, 24, now)
        assert "ETA -" in lines[0]
        assert "no result yet" in lines[1]


def test_a_picture_of_64_runs_takes_under_10_ms(tmp_path: Path) -> None:
    loaded = simulate(tmp_path, trials=64)
    events = events_of(loaded)
    _, view, now = seen_at(loaded, events[: int(0.8 * len(events))])
    assert len(view.rows) == 64
    took = []
    for _ in range(9):
        began = time.thread_time()
        draw(view, 200, 60, now)
        took.append(time.thread_time() - began)
    assert sorted(took)[2] < 0.010


@given(st.text(max_size=60), st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_clipped_to_its_cells(text: str, width: int) -> None:
    safe = clean(text)
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in safe)
    assert cells(clip(safe, width)) <= width
    assert cells(fit(safe, width)) == width


@pytest.mark.parametrize(
    "text", ["漢字テスト", "e\u0301a\u0308o", "👍🏽 ok", "a\u200bb", "\u0301x", "ｆｕｌｌ", "ไทย", "עברית", "😀😀"]
)
def test_cells_are_those_of_a_terminal(text: str) -> None:
    assert cells(clean(text)) == sum(max(0, wcswidth(char)) for char in clean(text))


def test_sparklines_and_bars() -> None:
    nan = float("nan")
    assert sparkline([0, 1, 2, 3], 8, 0, 3) == "▁▃▆█"
    assert sparkline([3, nan, 0, float("inf")], 8, 0, 3) == "█×▁█"
    assert sparkline([5, 5], 8, 5, 5) == "▅▅"
    assert sparkline([0, 0, 3, 3], 2, 0, 3) == "▁█"
    assert sparkline([0, nan, 3, 3], 2, 0, 3) == "×█"
    assert sparkline([], 8, 0, 1) == ""
    assert sparkline([0, 3], 8, 0, 3, ASCII) == "_#"
    assert bounds([nan, *range(101), float("inf")]) == (5, 95)
    assert bounds([nan]) == (0.0, 0.0)
    assert "".join(text for text, _ in bar(0.3, 0.55, 10)) == "━━━╌╌╌····"
    assert "".join(text for text, _ in bar(0.3, 0.3, 10)) == "━━━·······"
    assert "".join(text for text, _ in bar(1.0, 1.0, 4)) == "━━━━"
    assert "".join(text for text, _ in bar(0.0, 0.01, 4, ASCII)) == "-..."
