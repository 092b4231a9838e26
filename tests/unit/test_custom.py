"""Pipelines of the user's own: found beside the sweep file, made with kwargs, and refused with a reason."""

from __future__ import annotations

import sys

import pytest

from pipelines import build_pipeline, pipeline_key
from pipelines.custom import add_folder, load_custom
from pipelines.stage import UserError

SOURCE = """
class Good:
    resource = "steps"
    def __init__(self, x=1):
        self.x = x
    def run(self, task, report):
        pass

class NoRun:
    resource = "steps"

class BadResource:
    resource = "epochs"
    def run(self, task, report):
        pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_pipeline.py").write_text(SOURCE)
    (tmp_path / "needs_missing.py").write_text("import not_installed_anywhere\n")
    add_folder(tmp_path)
    yield "own_pipeline"
    for name in ("own_pipeline", "needs_missing"):
        sys.modules.pop(name, None)


def config(path, **kwargs):
    return {"type": "custom", "import_path": path, "kwargs": kwargs}


def test_kwargs_reach_the_class(module):
    assert build_pipeline(config(f"{module}:Good", x=7)).x == 7


@pytest.mark.parametrize(
    ("path", "kwargs", "said"),
    [
        ("nowhere_to_be_found:Good", {}, "no module 'nowhere_to_be_found'"),
        ("own_pipeline:Goood", {}, "no class 'Goood'; it has BadResource, Good, NoRun"),
        ("own_pipeline:Good", {"y": 1}, "pipeline.kwargs: own_pipeline:Good refused them"),
        ("own_pipeline:NoRun", {}, "needs a method run"),
        ("own_pipeline:BadResource", {}, "one of steps, tokens, questions"),
    ],
)
def test_what_is_wrong_is_said(module, path, kwargs, said):
    with pytest.raises(UserError, match=said):
        load_custom(config(path, **kwargs))


def test_a_module_that_fails_by_itself_keeps_its_own_error(module):
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_custom(config("needs_missing:Good"))


def test_the_folder_comes_after_what_is_importable_already(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["first"])
    add_folder(tmp_path)
    add_folder(tmp_path)
    assert sys.path == ["first", str(tmp_path)]


def test_custom_pipelines_are_shared_only_with_equal_kwargs():
    one, same, other = config("m:C", x=1), config("m:C", x=1), config("m:C", x=2)
    assert pipeline_key(one) == pipeline_key(same) != pipeline_key(other)
    assert pipeline_key({"type": "sft", "lora_r": 8}) == pipeline_key({"type": "sft", "lora_r": 16})
