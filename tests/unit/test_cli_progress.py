"""Snapshots of the ledger, the view that shows them, and the soup's and verdicts' words."""

from __future__ import annotations

import errno
import io
import math
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluators.base import ItemSet, summarise
from sweeps.commands.story import final_lines, soup_lines, verdict_line
from sweeps.events import Event
from sweeps.fold import apply_event
from sweeps.load import LoadedSweep, load_text
from sweeps.progress import ProgressView, snapshot
from sweeps.state import SoupState, SweepState
from sweeps.words import describe_best, duration, share_done

FILE = """
name: toy
pipeline: {type: custom, import_path: "toy:Toy", total: 9, metrics: {loss: minimize}, kwargs: {x: 0.1}}
parameters: {kwargs.x: {min: 0.0, max: 1.0}}
metric: loss
budget: {trials: 6}
early_terminate: {type: asha, min: 1, eta: 3}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedSweep:
    (tmp_path / "toy.py").write_text("class Toy: ...\n")
    return load_text(FILE.encode(), tmp_path)


class Story:
    """Writes a sweep's events as the engine does."""

    def __init__(self) -> None:
        self.state = SweepState()
        self.seq = 0
        self.say("sweep_created", name="toy", spec={}, versions={}, space={})
        self.say("driver_started", pid=1, host="h", version="0")

    def say(self, kind: str, /, **body: Any) -> None:
        self.seq += 1
        apply_event(self.state, Event(kind, body, self.seq, 1000.0 + self.seq))

    def trial(self, order: int) -> str:
        trial = f"{order:04d}-{order:08x}"
        self.say("suggested", trial=trial, order=order, config={}, parameters={}, choices={})
        run = f"{trial}/seed-0"
        self.say("lease_started", lease=f"{trial}-l", run=run, attempt=0, from_resource=0, milestones=[1, 3, 9])
        return run

    def report(self, run: str, resource: int, value: float, end: bool = True) -> None:
        items = ItemSet(tuple(str(i) for i in range(4)))
        score = summarise("loss", "tune", "minimize", items, [value - 0.1, value + 0.1, value, value])
        self.say("reported", lease="l", run=run, attempt=0, resource=resource, scores=[score.record()], telemetry={})
        if end:
            self.say("lease_ended", lease="l", run=run, reason="stopped")


def test_a_snapshot_counts_and_finds_the_best_at_the_highest_rung(loaded: LoadedSweep) -> None:
    story = Story()
    runs = [story.trial(order) for order in range(4)]
    story.report(runs[0], 1, 0.5)
    story.report(runs[1], 1, 0.1)
    story.report(runs[0], 3, 0.4)
    story.report(runs[2], 1, math.nan)
    story.say("failed", lease="l", run=runs[3], attempt=0, kind="user", message="no", traceback="", final=True)
    shot = snapshot(story.state, loaded)
    assert shot["trials"]["total"] == 6
    assert (shot["trials"]["started"], shot["trials"]["tried"], shot["trials"]["failed"]) == (4, 4, 1)
    assert shot["best"]["trial"] == "0000-00000000"
    assert (shot["best"]["resource"], shot["best"]["value"], shot["best"]["n"]) == (3, pytest.approx(0.4), 4)
    assert shot["best"]["se"] == pytest.approx(0.0408, abs=1e-3)
    assert shot["resource"] == {"done": 3 + 1 + 1, "expected": 6 * 1 + 2 * 2 + 1 * 6}
    assert shot["seconds"] == story.seq - 2


def test_a_diverged_sweep_has_no_best(loaded: LoadedSweep) -> None:
    story = Story()
    story.report(story.trial(0), 1, math.nan)
    assert snapshot(story.state, loaded)["best"] is None
    assert describe_best(None) == "no result yet"


def test_the_stage_follows_the_events(loaded: LoadedSweep) -> None:
    story = Story()
    assert snapshot(story.state, loaded)["state"] == "running"
    story.say("soup_started", soup="greedy-1", method="greedy", metric="select/loss", ingredients=[])
    assert snapshot(story.state, loaded)["state"] == "soup"
    story.say("soup_finished", soup="greedy-1", ingredients=[], folder="", score=None, hash=None)
    story.say("final_frozen", candidates=[{"role": "winner"}])
    assert snapshot(story.state, loaded)["state"] == "final"
    story.say("stop_requested", by="command")
    assert snapshot(story.state, loaded)["state"] == "stopping"
    story.say("sweep_finished", trials=0, failed=0, best=None, seconds=1)
    assert snapshot(story.state, loaded)["state"] == "finished"


def test_what_a_stopped_sweep_has_still_to_do(loaded: LoadedSweep) -> None:
    """One that goes on after a resume is not done, whatever it has reported; one at the end of its budget is."""
    for by, share in (("command", 0.0), ("ctrl-c", 0.0), ("budget", 1.0)):
        story = Story()
        run = story.trial(0)
        story.say("stop_requested", by=by)
        story.say("lease_ended", lease="l", run=run, reason="interrupted")
        shot = snapshot(story.state, loaded)
        assert (shot["state"], share_done(shot)) == ("stopping", share)
        assert (shot["ahead"] > 0) == (share < 1)


def shot_of(done: int, expected: int | None = 100, tried: int = 1, best: Mapping[str, Any] | None = None) -> Any:
    trials = {"total": 6, "tried": tried, "running": 1, "failed": 0}
    resource = {"done": done, "expected": expected}
    eta = {"seconds": 100.0, "low": 50.0, "high": 150.0, "by": "work"} if done else None
    return {"name": "toy", "state": "running", "trials": trials, "best": best, "resource": resource, "eta": eta}


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3725, "1:02:05")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_plain_lines_come_at_changes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = io.StringIO()
    view = ProgressView(out)
    for second in range(40):
        now[0] += 1
        view.on_snapshot(shot_of(second, tried=1 + second // 20))
    view.on_message("soup greedy-1: started")
    lines = out.getvalue().splitlines()
    assert lines[-1] == "soup greedy-1: started"
    assert [re.sub(r"\[.*?\] ", "", line)[:10] for line in lines[:-1]] == ["1/6 trials"] * 2 + ["2/6 trials"] * 2
    assert lines[1].startswith("[16 s] 1/6 trials, 1 running, no result yet, 15%, ETA 1:40")
    assert "\x1b" not in out.getvalue()


def test_a_reader_that_went_away_does_not_end_the_sweep() -> None:
    class Gone(io.StringIO):
        def __init__(self, error: OSError) -> None:
            super().__init__()
            self.error = error

        def write(self, text: str) -> int:
            raise self.error

    for error in (BrokenPipeError(), OSError(errno.EIO, "the terminal hung up")):
        with ProgressView(Gone(error), live=False) as view:
            view.on_snapshot(shot_of(1))
            view.on_message("x")
        assert view.gone


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    reading = threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            reading.wait(10)
            return super().write(text)

    out = Slow()
    with ProgressView(out, live=False) as view:
        began = time.monotonic()
        for done in range(50):
            view.on_snapshot(shot_of(done))
            view.on_message(f"message {done}")
        assert time.monotonic() - began < 1
        reading.set()
    assert [line for line in out.getvalue().splitlines() if line.startswith("message")] == [
        f"message {done}" for done in range(50)
    ]


def test_messages_can_not_steer_the_terminal() -> None:
    out = io.StringIO()
    view = ProgressView(out)
    view.on_message("one\x1b[2J\ntwo \x9b31m\u202etxt")
    assert out.getvalue() == "one?[2J\ntwo ?31mtxt\n"


VERDICT = {
    "left": "soup",
    "right": "winner",
    "metric": "test/loss",
    "difference": -0.012,
    "se": 0.01,
    "low": -0.032,
    "high": 0.008,
    "p": 0.3,
    "n": 60,
    "better": "neither",
}


def test_verdicts_are_told_in_words() -> None:
    assert verdict_line(VERDICT) == (
        "soup - best single on test/loss: -0.012 ± 0.02 (95 %), p = 0.3, n=60: no difference shown"
    )
    clear = {**VERDICT, "high": -0.002, "low": -0.022, "better": "left", "p": 0.01}
    assert verdict_line(clear).endswith(": soup is better")
    assert verdict_line({**clear, "better": "right"}).endswith(": best single is better")
    shaken = verdict_line({**clear, "p_holm": 0.08}, tests=8)
    assert shaken.endswith("no difference shown once 8 verdicts are allowed for (Holm p = 0.08)")
    nats = verdict_line({**VERDICT, "metric": "test/perplexity"})
    assert "-0.012 ± 0.02 (95 %) in nats, the logarithm's scale, p = 0.3, n=60" in nats
    assert verdict_line({**VERDICT, "difference": None}).endswith("nothing could be compared")


def test_the_soups_story_names_every_decision(tmp_path: Path) -> None:
    soup = SoupState("greedy-1", "greedy", "select/loss", [{"run": "a"}, {"run": "b"}])
    soup.decisions = [
        {"run": "a", "decision": "start", "score": 0.2, "best": 0.2, "reason": "the best single"},
        {"run": "b", "decision": "reject", "score": 0.3, "best": 0.2, "reason": "worse"},
    ]
    assert "not finished" in soup_lines(soup, tmp_path)[-1]
    soup.finished = {"ingredients": [["a", 1.0]], "folder": "soups/greedy-1", "score": None, "hash": "x"}
    lines = soup_lines(soup, tmp_path)
    assert lines[0] == "soup greedy-1: greedy over 2 runs, chosen on select/loss"
    assert lines[1].split() == ["start", "a", "0.2", "the", "best", "single"]
    assert lines[2].split()[:6] == ["reject", "b", "0.3", "(best", "so", "far"]
    assert lines[3:] == ["  in it   a", f"  folder  {tmp_path}"]
    soup.finished = {"ingredients": [], "folder": "", "reason": "only one run is left"}
    assert soup_lines(soup, tmp_path)[-1] == "  no soup: only one run is left"


def test_many_openings_of_test_are_told() -> None:
    items = ItemSet(("a", "b"))
    scores = {"test/loss": summarise("loss", "test", "minimize", items, [1.0, 2.0])}
    finals = ({"role": "winner", "candidate": {"run": "x"}, "seed": None, "scores": scores},)
    verdicts = ({**VERDICT, "covers": "data", "note": "compared unpaired"},)
    board = SimpleNamespace(
        finals=finals,
        verdicts=verdicts,
        tests=3,
        same={},
        earlier=(),
        test_openings=2,
        alpha=0.05,
        gaps=(),
        tuned_after=0,
    )
    lines = final_lines(board)  # type: ignore[arg-type]
    assert lines[0].split() == ["final", "step", "n", "test/loss"]
    assert lines[1].split() == ["best", "single", "2", "1.50", "±", "0.50"]
    assert lines[3] == "  note: compared unpaired"
    assert "cover the choice of rows, not the luck of training" in lines[4]
    assert "test was opened 2 times for 3 verdicts" in lines[-1]
