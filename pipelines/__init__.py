"""Pipelines: what one trial is. Loaded by name on first use, so that reading a sweep file imports no torch."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.stage import Pipeline

PIPELINES: dict[str, str] = {
    "sft": "pipelines.finetune.sft:SFTPipeline",
    "distill": "pipelines.finetune.distill:DistillPipeline",
    "retrain_pruned": "pipelines.finetune.sft:SFTPipeline",
    "dpo": "pipelines.finetune.preference:DPOPipeline",
    "rag": "pipelines.rag.pipeline:RagPipeline",
    "custom": "pipelines.custom:load_custom",
}


def build_pipeline(config: Mapping[str, Any]) -> Pipeline:
    """The pipeline that a resolved configuration names.

    Raises:
        KeyError: for a type that is not in the table; the door has checked it.
        pipelines.stage.UserError: when a pipeline of the user's own can't be loaded.
    """
    module, _, name = PIPELINES[config["type"]].partition(":")
    maker = getattr(importlib.import_module(module), name)
    return maker(config) if config["type"] == "custom" else maker()


def pipeline_key(config: Mapping[str, Any]) -> str:
    """What must be equal for two configurations to share one warm pipeline.

    A built-in pipeline serves every configuration of its type; a custom one is made from its `kwargs`.
    """
    if config["type"] != "custom":
        return str(config["type"])
    return json.dumps([config["import_path"], config.get("kwargs", {})], sort_keys=True)
