"""Killed at any call and any event, every recipe resumes to the soup of an undisturbed run, event by event.

Here at four calls and four events each, from the first on; `greedy` at every one in `test_soup.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from soup_machine import Killed, Stage

from sweeps.soup import make_soup
from sweeps.soup_spec import parse_soup

NOISES = [0.5, 0.3, 0.9]
RECIPES: dict[str, dict[str, Any]] = {
    "uniform": {"toward_base": {"evaluations": 3}},
    "weighted": {"weights": [2, 1]},
    "pruned": {"barrier": False},
    "search": {"evaluations": 4, "barrier": False},
    "learned": {"per": "layer", "barrier": False},
    "task_arithmetic": {"scaling": 1.5, "barrier": False},
}


def staged(folder: Path) -> Stage:
    folder.mkdir()
    stage = Stage(folder, NOISES)
    plain = stage.backend.do

    def do(function: str, payload: Any) -> Any:
        if function == "pipelines.soups.learned:learn":
            columns = {"rest": [0.6, 0.3, 0.1][: len(payload["folders"])]}
            return {"coefficients": columns, "losses": [1.0, 0.9], "temperature": 1.0, "epochs": 1}
        return plain(function, payload)

    stage.backend.do = do  # type: ignore[method-assign]
    return stage


def make(stage: Stage, method: str) -> Any:
    config = parse_soup({"method": method, "top": 3, **RECIPES[method]})
    return make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, config, stage.said.append)


def facts(stage: Stage) -> Any:
    return json.loads(json.dumps(stage.facts()))


@pytest.mark.parametrize("method", RECIPES)
def test_a_kill_anywhere_changes_nothing(tmp_path: Path, method: str) -> None:
    calm = staged(tmp_path / "calm")
    assert make(calm, method) is not None
    calls, events = len(calm.backend.calls), len(calm.facts())
    assert calls > 3
    for what, count in (("call", calls), ("event", events)):
        for after in range(0, count, -(-count // 3)):
            stage = staged(tmp_path / f"{what}-{after}")
            stage.kill(what, after)
            with pytest.raises(Killed):
                make(stage, method)
            assert make(stage, method) is not None
            assert facts(stage) == facts(calm)
            assert not list(stage.paths.soup(f"{method}-1").glob(".work"))
            stage.ledger.drop()
