"""Packages that a sweep's configurations need beyond what every installation has: missing ones are told before anything runs.

Trials on other machines need them there as well.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from pipelines.config import AnyPipeline, FineTuneConfig, RagConfig
from pipelines.extras import EXTRA, missing
from pipelines.rag.models import SentenceTransformersModel, WordLlamaModel, embedding_model
from pipelines.rag.stages import CrossEncoder, MaxSim
from sweeps.draft import Draft


@dataclass(frozen=True)
class Need:
    """A package that a configuration needs.

    Attributes:
        path: dotted key of the pipeline that wants the package.
        value: what stands there.
        package: as it is imported.
        extra: what of our own distribution brings it.
    """

    path: str
    value: str
    package: str
    extra: str = EXTRA


def check_packages(draft: Draft) -> None:
    """Note one mistake for each value that needs a package which is not installed."""
    needs = {need: None for _, config in draft.configs for need in needed(config)}
    absent = {package for package in {need.package for need in needs} if importlib.util.find_spec(package) is None}
    for need in needs:
        if need.package in absent:
            words = f"{need.path.rpartition('.')[2]}: {need.value}"
            draft.wrong(draft.source(need.path), str(missing(need.package, words, need.extra)))


def needed(config: AnyPipeline) -> Iterator[Need]:
    """What one configuration needs."""
    if isinstance(config, FineTuneConfig):
        if config.optimizer == "adamw_8bit":
            yield Need("optimizer", "adamw_8bit", "bitsandbytes", "bitsandbytes")
        if config.quantised is not None:
            yield Need(config.quantised, "true", "bitsandbytes", "bitsandbytes")
    elif isinstance(config, RagConfig):
        yield from _of_stages(config, "")


def _of_stages(section: BaseModel, above: str) -> Iterator[Need]:
    for name in type(section).model_fields:
        path, value = f"{above}{name}", getattr(section, name)
        if name in ("embedding_model", "answer_embedding") and value is not None:
            model = embedding_model(value)
            if isinstance(model, WordLlamaModel):
                yield Need(path, "wordllama", "wordllama")
            elif isinstance(model, SentenceTransformersModel):
                yield Need(path, model.model, "sentence_transformers")
        elif isinstance(value, CrossEncoder | MaxSim):
            yield Need(path, value.type, "sentence_transformers")
        elif isinstance(value, BaseModel):
            yield from _of_stages(value, f"{path}.")
