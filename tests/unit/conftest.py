"""Fixtures of several unit tests; what they need is imported once one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cloud import Cloud

    from sweeps.paths import SweepPaths


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cloud:
    """Remote storage in memory, and this machine beside it."""
    from cloud import make_cloud

    return make_cloud(monkeypatch, tmp_path)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], SweepPaths]:
    """Another machine by a name: its own working folder, the same storage."""
    from cloud import machine

    return lambda name: machine(monkeypatch, tmp_path / name)
