"""Slim imports, and tables that keep what they promise."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any, get_args

import pytest

import evaluators
import evaluators.config
import pipelines
import pipelines.calls
import pipelines.config
import pipelines.rag
import pipelines.rag.models
import pipelines.rag.stages
import pipelines.soups
import pipelines.soups.config
import sweeps.schedulers
import sweeps.searchers
import sweeps.soup_spec
import sweeps.spec
import sweeps.track_spec
import sweeps.trackers

HEAVY = (
    "torch", "ray", "transformers", "peft", "trl", "datasets", "accelerate", "faiss", "chromadb",
    "sentence_transformers", "optuna",
)  # fmt: skip


def literals(union: Any) -> set[str]:
    """The `type` words of an annotated union told apart by `type`."""
    return {get_args(member.model_fields["type"].annotation)[0] for member in get_args(get_args(union)[0])}


EMBEDDING_SECTIONS = [
    member for member in get_args(get_args(pipelines.rag.models.EmbeddingModel)[0]) if get_args(member)[0] is not str
]
TABLES = {
    "PIPELINES": (pipelines.PIPELINES, literals(pipelines.config.PipelineConfig)),
    "EVALUATORS": (evaluators.EVALUATORS, literals(evaluators.config.AnyEvaluatorConfig)),
    "SEARCHERS": (sweeps.searchers.SEARCHERS, literals(sweeps.spec.MethodConfig)),
    "SCHEDULERS": (sweeps.schedulers.SCHEDULERS, literals(sweeps.spec.EarlyTerminateConfig)),
    "CHUNKERS": (pipelines.rag.CHUNKERS, literals(pipelines.rag.stages.ChunkConfig)),
    "EMBEDDERS": (
        {word: pipelines.calls.MODELS[kind] for word, kind in pipelines.rag.EMBEDDERS.items()},
        {get_args(get_args(member)[0].model_fields["type"].annotation)[0] for member in EMBEDDING_SECTIONS},
    ),
    "STORES": (pipelines.rag.STORES, literals(pipelines.rag.stages.StoreConfig)),
    "RETRIEVERS": (pipelines.rag.RETRIEVERS, literals(pipelines.rag.stages.RetrieveConfig)),
    "RERANKERS": (pipelines.rag.RERANKERS, literals(pipelines.rag.stages.RerankConfig)),
    "GENERATORS": (pipelines.rag.GENERATORS, literals(pipelines.rag.models.GeneratorConfig)),
    "TRACKERS": (sweeps.trackers.TRACKERS, literals(sweeps.track_spec.TrackConfig)),
    "METHODS": (pipelines.soups.METHODS, literals(pipelines.soups.config.MergeMethodConfig)),
    "SOUPS": (
        pipelines.soups.SOUPS,
        set(sweeps.soup_spec.SOUP_METHODS) - {"sparse"},  # no recipe: sweeps/sparse.py drives its phases
    ),
}


@pytest.mark.parametrize(
    "module",
    [
        "sweeps.cli",
        "sweeps.load",
        "sweeps.engine",
        "sweeps.simulate",
        "pipelines.splits",
        "pipelines.rag.bench",
        "evaluators.retrieval",
        "sweeps.commands.first",
        "sweeps.starter.sft",
        "sweeps.schema",
        "sweeps.reference",
        "pipelines.soups.config",
    ],
)
def test_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("table", TABLES)
def test_table_has_what_the_file_may_say(table: str) -> None:
    entries, words = TABLES[table]
    assert len(words) >= 2
    assert set(entries) == words


@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table, (entries, _) in TABLES.items() for name in entries]
)
def test_entry_resolves(table: str, name: str) -> None:
    module, _, attribute = TABLES[table][0][name].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
