"""`type: custom`: a pipeline of the user's own, by `import_path: module:Class` and `kwargs`.

The class has `resource` ("steps", "tokens" or "questions"), `run(task, report)` and, to be scored by the final step and
by soups, `evaluate(job)`; see `pipelines.stage.Pipeline`. Workers put the sweep file's folder on the module path first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pipelines.stage import Pipeline, Resource, UserError


def add_folder(folder: str | Path) -> None:
    """Make modules in the sweep file's folder importable, after everything that is importable already."""
    text = str(folder)
    if text not in sys.path:
        sys.path.append(text)
        importlib.invalidate_caches()


def load_custom(config: Mapping[str, Any]) -> Pipeline:
    """An instance of the class that `import_path` names, made with `kwargs`.

    Raises:
        UserError: naming what is missing: the module, the class, an argument, `resource` or `run`.
    """
    path = str(config["import_path"])
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or module_name.split(".")[0] != error.name.split(".")[0]:
            raise
        raise UserError(
            f"pipeline.import_path: no module '{module_name}' beside the sweep file or installed where trials run"
        ) from error
    maker = getattr(module, class_name, None)
    if not callable(maker):
        names = sorted(n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__)
        raise UserError(
            f"pipeline.import_path: {module_name} has no class '{class_name}'; it has {', '.join(names) or 'none'}"
        )
    try:
        pipeline = maker(**config.get("kwargs", {}))
    except TypeError as error:
        raise UserError(f"pipeline.kwargs: {path} refused them: {error}") from error
    problem = _lacks(pipeline)
    if problem:
        raise UserError(f"pipeline.import_path: {path} {problem}")
    return pipeline


def _lacks(pipeline: Any) -> str | None:
    legal = get_args(Resource)
    if getattr(pipeline, "resource", None) not in legal:
        return f"needs an attribute resource, one of {', '.join(legal)}"
    if not callable(getattr(pipeline, "run", None)):
        return "needs a method run(task, report)"
    return None
