"""Schedulers: which run goes on, and how far. Plain Python: no Ray, no store, no pipeline."""

from __future__ import annotations

SCHEDULERS: dict[str, str] = {
    "none": "sweeps.schedulers.base:RunToEnd",
    "asha": "sweeps.schedulers.asha:ASHAScheduler",
}
