"""A whole sweep on the virtual clock, and its state at any moment: what the terminal's tests look at."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.events import Event
from sweeps.failures import Failure
from sweeps.fold import apply_event
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep, load_text
from sweeps.news import News
from sweeps.overview import Overview, overview
from sweeps.paths import SweepPaths
from sweeps.progress import snapshot
from sweeps.simulate import MemoryCheckpoints, SimulatedBackend, VirtualClock, drive
from sweeps.state import SweepState
from sweeps.trial import Lease

FILE = """
name: gsm8k-lora
pipeline: {{type: custom, import_path: "toy:Toy", total: 81, metrics: {{loss: minimize}}, kwargs: {{x: 0.1, r: 8}}}}
parameters: {{kwargs.x: {{distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-3}}, kwargs.r: [8, 16, 32]}}
metric: loss
budget: {{trials: {trials}}}
early_terminate: {{type: asha, min: 3, eta: 3}}
report_every: 3
seeds: {{tune: {seeds}}}
"""
BEGAN = 1_700_000_000.0
HOSTILE = "bad\x1b[2J\x1b]0;title\x07 \u202etext 漢字漢字 e\u0301\u0301\u0301\u0301\u0301 \x9b31m"


def draw_of(config: Mapping[str, Any], salt: object) -> float:
    """A number in [0, 1) that belongs to a configuration."""
    told = repr((sorted(config["kwargs"].items()), salt)).encode()
    return int(hashlib.sha256(told).hexdigest()[:8], 16) / 2**32


def simulate(root: Path, trials: int = 24, slots: int = 4, spread: float = 10.0, seeds: str = "[0]") -> LoadedSweep:
    """Run a sweep with runs that diverge, run out of memory and fail, to its end."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "toy.py").write_text("class Toy: ...\n")
    text = FILE.format(trials=trials, seeds=seeds) + f"storage: {root}\n"
    loaded = load_text(text.encode(), root)

    def curve(config: Mapping[str, Any], resource: int, seed: int) -> float:
        if draw_of(config, "nan") < 0.1 and resource > 3:
            return math.nan
        best = 0.9 + 0.4 * abs(math.log10(config["kwargs"]["x"]) + 4)
        return best + 1.4 * math.exp(-resource / 20 * (0.5 + draw_of(config, "k"))) + 0.02 * draw_of(config, seed)

    def faults(lease: Lease, resource: int) -> Failure | None:
        luck = draw_of(lease.config, ("fault", lease.attempt.n))
        if luck < 0.1:
            return Failure("oom", "CUDA out of memory. Tried to allocate 2.00 GiB")
        return Failure("user", HOSTILE) if luck < 0.2 else None

    backend = SimulatedBackend(
        slots,
        curve,
        seconds=lambda config: 4 + spread * draw_of(config, "s"),
        faults=faults,
        report_every=3,
        clock=VirtualClock(BEGAN),
        checkpoints=MemoryCheckpoints(SweepPaths(loaded.paths.root)),
    )
    drive(loaded, loaded.paths.root, backend)
    return loaded


def events_of(loaded: LoadedSweep, slots: int = 4) -> list[Event]:
    """The sweep's events, with the slots that a driver on Ray would tell of."""
    ledger = Ledger.read(loaded.paths.root)
    events = list(ledger.events())
    ledger.drop()
    on = {"slots": slots, "cpus": 1.0, "gpus": 0.5, "address": None, "host": "elsewhere"}
    return [replace(e, body={**e.body, **on}) if e.kind == "driver_started" else e for e in events]


def seen_at(loaded: LoadedSweep, events: Iterable[Event], late: float = 3.0) -> tuple[SweepState, Overview, float]:
    """State and overview after the events, `late` seconds after the newest one, and that moment."""
    state, news = SweepState(), News()
    for event in events:
        apply_event(state, event)
        news.apply(event)
    now = state.updated_at + late
    shot = snapshot(state, loaded, now)
    return state, overview(state, loaded, shot, news.items, now, "Ctrl-C stops"), now
