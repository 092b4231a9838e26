"""Nothing of the product turns bytes into code: no pickle, no `eval`, no YAML with types of its own. Read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_layering import TREES

MODULES = {
    "pickle", "_pickle", "pickletools", "cloudpickle", "ray.cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle",
    "multiprocessing", "torch.multiprocessing", "torch.package", "torch.hub", "torch.jit", "skops",
}  # fmt: skip
"""Modules that unpickle, or run code that they read; importing one is enough."""
CALLS = {
    "eval", "exec", "compile", "__import__", "runpy.run_path", "runpy.run_module", "code.InteractiveInterpreter",
    "torch.export.load", "torch.distributed.broadcast_object_list", "torch.distributed.all_gather_object",
    "torch.distributed.gather_object", "torch.distributed.scatter_object_list", "torch.distributed.recv_object_list",
    "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all", "yaml.Loader", "yaml.CLoader",
    "yaml.UnsafeLoader", "yaml.CUnsafeLoader", "yaml.FullLoader", "yaml.CFullLoader", "logging.config.listen",
    "pandas.read_pickle", "pandas.eval", "numexpr.evaluate",
}  # fmt: skip
"""Names that may not be used, called or not."""
METHODS = {"read_pickle", "from_pickle", "load_pickle", "unsafe_load", "literal_evaluate"}
"""Methods of whatever object."""
MAY = {
    ("torch.load", "weights_only"): True,
    ("numpy.load", "allow_pickle"): False,
    ("yaml.load", "Loader"): ("yaml.SafeLoader", "yaml.CSafeLoader"),
    ("yaml.load_all", "Loader"): ("yaml.SafeLoader", "yaml.CSafeLoader"),
}
"""Calls that must say a word so."""
WORDS = {"weights_only": True, "allow_pickle": False, "allow_dangerous_deserialization": False, "unsafe": False}
"""Words that may be said in no other way, whatever is called."""
EXCEPTIONS = {
    ("sweeps.task_files", "yaml.load"): "with `_Loader`, which is a SafeLoader that reads every `!tag` as its text",
}
"""(module, what) that is right for another reason; a test below holds it."""
READ_BY_TORCH = {"_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state"}
"""Methods of transformers' Trainer that use `torch.load` when a run goes on; ours read safetensors and JSON."""


def aliases(tree: ast.Module) -> dict[str, str]:
    """What the names that a module imports, at its top or later, stand for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                top = name.name.partition(".")[0]
                found[name.asname or top] = name.name if name.asname else top
        elif isinstance(node, ast.ImportFrom):
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """The full name that a piece of source stands for; empty where it is something else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id).removeprefix("builtins.")
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return f"{before}.{node.attr}".removeprefix("builtins.") if before else ""
    return ""


def told(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """What in a module could turn bytes into code, with its line."""
    names = aliases(tree)
    for node in ast.walk(tree):
        yield from ((node.lineno, name) for name in _told(node, names))  # type: ignore[attr-defined]


def _told(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names if _inside(name.name))
    elif isinstance(node, ast.ImportFrom):
        yield from (full for name in node.names if _inside(full := f"{node.module}.{name.name}"))
    elif isinstance(node, ast.Name | ast.Attribute):
        name = dotted(node, names)
        if name in CALLS or (_inside(name) and isinstance(node, ast.Attribute)):
            yield name
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield node.attr
    elif isinstance(node, ast.Call):
        yield from _called(node, names)


def _called(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    name = dotted(node.func, names)
    said = {word.arg: word.value for word in node.keywords}
    for (call, word), right in MAY.items():
        if name == call and not _is(said.get(word), right, names):
            yield name
    for word, right in WORDS.items():
        if word in said and not _is(said[word], right, names):
            yield f"{name}({word})"
    if name.rpartition(".")[2] in ("import_module", "getattr") and any(
        isinstance(given, ast.Constant)
        and isinstance(given.value, str)
        and (given.value in CALLS or _inside(given.value))
        for given in node.args
    ):
        yield ast.unparse(node)


def _inside(name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in MODULES)


def _is(node: ast.expr | None, right: object, names: dict[str, str]) -> bool:
    if isinstance(right, tuple):
        return node is not None and dotted(node, names) in right
    return isinstance(node, ast.Constant) and node.value is right


def test_nothing_is_unpickled_or_evaluated() -> None:
    found = [(module, name, line) for module, tree in TREES.items() for line, name in told(tree)]
    assert not [f"{module}:{line}: {name}" for module, name, line in found if (module, name) not in EXCEPTIONS]
    assert {(module, name) for module, name, _ in found} == set(EXCEPTIONS), "an exception that nothing needs any more"


def test_task_files_make_no_objects() -> None:
    import yaml

    from sweeps.task_files import _Loader

    tags = (
        "!function a.b",
        "!python/name:os.system x",
        "!!python/object/apply:os.system [x]",
        "!!python/name:os.system",
    )
    for tag in tags:
        try:
            found = yaml.load(f"a: {tag}", Loader=_Loader)["a"]
        except yaml.constructor.ConstructorError:
            continue
        assert isinstance(found, str)


def test_a_run_that_goes_on_reads_nothing_the_library_s_way() -> None:
    trainers = {
        f"{module}.{node.name}": {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Trainer") for base in node.bases)
    }
    assert "pipelines.finetune.trainer.Trainer" in trainers
    assert {name: READ_BY_TORCH - methods for name, methods in trainers.items() if READ_BY_TORCH - methods} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import cloudpickle as cp",
        "from pickle import loads",
        "from ray import cloudpickle",
        "import ray; ray.cloudpickle.loads(b'')",
        "import dill, json",
        "from joblib import load",
        "import marshal",
        "from multiprocessing.connection import Client",
        "import importlib; importlib.import_module('pickle')",
        "from importlib import import_module; import_module('ray.cloudpickle')",
        "eval('1')",
        "exec('1')",
        "f = eval",
        "import builtins; builtins.eval('1')",
        "import builtins; getattr(builtins, 'exec')('1')",
        "compile('1', 'x', 'eval')",
        "__import__('os')",
        "import torch; torch.load('x')",
        "import torch; torch.load('x', weights_only=False)",
        "from torch import load as read; read('x')",
        "import torch as t; t.load('x', weights_only=bool(1))",
        "import torch; torch.hub.load('a', 'b')",
        "import torch.distributed as dist; dist.broadcast_object_list([])",
        "import numpy as np; np.load('x')",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "import bm25s; bm25s.BM25.load('x', allow_pickle=True)",
        "import pandas as pd; pd.read_pickle('x')",
        "def f(table): return table.read_pickle('x')",
        "import yaml; yaml.load('x', yaml.SafeLoader)",
        "import yaml; yaml.load('x', Loader=yaml.Loader)",
        "import yaml; yaml.load('x', Loader=yaml.FullLoader)",
        "import yaml; yaml.unsafe_load('x')",
        "from yaml import full_load; full_load('x')",
        "import yaml\nclass L(yaml.UnsafeLoader): ...",
    ],
)
def test_the_reader_sees(line: str) -> None:
    assert list(told(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "import json; json.loads('1')",
        "import yaml; yaml.safe_load('x')",
        "import yaml; yaml.load('x', Loader=yaml.CSafeLoader)",
        "import torch; torch.load('x', weights_only=True)",
        "import numpy as np; np.load('x', allow_pickle=False)",
        "from safetensors.torch import load; load(b'')",
        "def f(model): return model.eval()",
        "import re; re.compile('x')",
        "import ast; ast.literal_eval('1')",
        "def f(loader): return loader.load('x')",
    ],
)
def test_the_reader_leaves(line: str) -> None:
    assert not list(told(ast.parse(line)))
