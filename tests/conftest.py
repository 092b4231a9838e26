"""What all tests share: threads, the cache of models, the real data, and what was skipped and why."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

# How busy the machine is fails no test.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

# Before anything imports torch or Ray, and inherited by the processes that tests start. Where several test processes
# share the machine (`pytest -n 2`), one thread each: more threads than cores take several times as long.
_THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, _THREADS)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# One converted SmolLM2 for all tests, and not in the cache of whoever runs them.
os.environ.setdefault("STOCKPOT_CACHE", str(ROOT / ".pytest_cache" / "stockpot"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the checkout; the test is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real data beside the checkout (../shared/data)")
    return SHARED_DATA


gc.disable()  # until the test modules are there: importing torch and transformers makes next to no garbage
_frozen = 0
"""Modules that were imported when what they hold was last set aside."""


def _set_imports_aside() -> None:
    """Keep what imports made out of later collections.

    A training run collects twice, and each time the half million objects of torch and transformers took longer than the
    run on a tiny model. They never become garbage.
    """
    global _frozen
    if len(sys.modules) > _frozen + 100:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


def pytest_collection_finish() -> None:
    """The test modules and what they import are there."""
    _set_imports_aside()
    gc.enable()


def pytest_runtest_teardown() -> None:
    """A test may have been the first that imports a library."""
    _set_imports_aside()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line with the number of skipped tests, none too, and a line a reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    terminalreporter.write_line(f"tests skipped: {len(skipped)}")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} x {reason}")
