"""The arrows between the packages, read from the source: who may import whom, and what loads when a module loads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sweeps", "pipelines", "evaluators", "cluster")
MAY = {
    "sweeps": {"sweeps", "pipelines", "evaluators", "cluster"},
    "pipelines": {"pipelines", "evaluators"},
    "evaluators": {"evaluators"},
    "cluster": {"cluster"},
}
HEAVY = {
    "torch", "ray", "transformers", "peft", "trl", "datasets", "accelerate", "faiss", "chromadb",
    "sentence_transformers", "optuna",
}  # fmt: skip
LIGHT = {
    "__init__", "spec", "space", "trial", "config", "cli", "base", "load", "describe", "engine", "ledger", "state", "fold",
    "stage",
}  # fmt: skip
"""Modules of these names load neither torch nor ray nor anything of their weight."""


def sources() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()
TREES = {module: ast.parse(path.read_text(encoding="utf-8"), str(path)) for module, path in SOURCES.items()}


def names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert not node.level, "imports are absolute here"
    return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]


def everywhere(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in names(node))


def at_load(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Imports that run when the module loads: not those in functions or under TYPE_CHECKING."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in names(node))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
            if isinstance(node, ast.Try):
                waiting.extend(line for handler in node.handlers for line in handler.body)


def test_there_is_something_to_read() -> None:
    assert {name.split(".")[0] for name in SOURCES} == set(PACKAGES)
    assert {"sweeps.cli", "sweeps.engine", "pipelines.stage", "evaluators.base"} <= set(SOURCES)


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_point_one_way(module: str) -> None:
    package = module.split(".")[0]
    wrong = [
        f"{module}:{line} imports {name}"
        for line, name in everywhere(TREES[module])
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in MAY[package]
    ]
    assert not wrong


# Optuna's Gaussian processes are torch's, and only torch can be told how many threads they take.
COMPUTES_WITH_TORCH = {"sweeps.searchers.gp"}


@pytest.mark.parametrize("module", [m for m in SOURCES if m.startswith(("sweeps.searchers", "sweeps.schedulers"))])
def test_searchers_and_schedulers_know_no_ray_no_store_no_pipeline(module: str) -> None:
    strangers = {
        "ray",
        "torch",
        "pipelines",
        "sweeps.events",
        "sweeps.ledger",
        "sweeps.engine",
        "sweeps.backend",
        "sweeps.runner",
        "sweeps.paths",
    }
    if module in COMPUTES_WITH_TORCH:
        strangers -= {"torch"}
    wrong = [
        f"{module}:{line} imports {name}"
        for line, name in everywhere(TREES[module])
        if any(name == stranger or name.startswith(stranger + ".") for stranger in strangers)
    ]
    assert not wrong


def test_ray_tune_stands_in_one_module_alone() -> None:
    users = {
        module
        for module, tree in TREES.items()
        for _, name in everywhere(tree)
        if name == "ray.tune" or name.startswith("ray.tune.")
    }
    assert users == {"sweeps.runner"}


def test_ray_stands_in_sweeps_and_cluster_alone() -> None:
    users = {
        m.split(".")[0] for m, tree in TREES.items() for _, name in everywhere(tree) if name.split(".")[0] == "ray"
    }
    assert users <= {"sweeps", "cluster"}


@pytest.mark.parametrize("module", SOURCES)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    if SOURCES[module].stem not in LIGHT:
        return
    heavy = [f"{module}:{line} loads {name}" for line, name in at_load(TREES[module]) if name.split(".")[0] in HEAVY]
    assert not heavy


def test_no_circle_at_load_time() -> None:
    graph = {
        module: {name for _, name in at_load(tree) if name in SOURCES and name != module}
        for module, tree in TREES.items()
    }
    # `from package import module` names the package too, but a module inside it is loaded after the package itself.
    for module, needs in graph.items():
        needs -= {package for package in needs if module.startswith(package + ".")}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"these load each other: {' -> '.join(error.args[1])}")


def test_every_package_ships_and_no_other() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES.values()}
    assert sorted(listed) == sorted(there)
    assert not any(name.split(".")[0] in ("tests", "examples", "benchmarks") for name in listed)


def test_reader_tells_load_time_from_later() -> None:
    tree = ast.parse(
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "try:\n    import d\nexcept ImportError:\n    import e\n"
        "class X:\n    import f\n    def g(self):\n        import h\n"
    )
    assert sorted(name for _, name in at_load(tree)) == ["a", "c", "d", "e", "f"]
    assert sorted(name for _, name in everywhere(tree)) == list("abcdefh")
