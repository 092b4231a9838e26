"""Sentence-transformers models: pooling and normalisation are what the model's own files say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from pipelines.calls import Answers, Identity, Role
from pipelines.extras import needs
from pipelines.memo import Cost
from pipelines.rag.embed import vector_bytes
from pipelines.rag.model_folder import find_model, folder_hash
from pipelines.stage import Devices, Services

SETTING = "embedding_model"
FUNCTION = 1


class SentenceTransformers:
    """The resident kind `sentence_transformers`."""

    role: ClassVar[Role] = "embedder"
    remote: ClassVar[bool] = False

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        """By the hash of the folder's files and the versions of the libraries."""
        return Identity(FUNCTION, folder_hash(find_model(spec["model"], SETTING)), versions=library_versions())

    @staticmethod
    def load(spec: Mapping[str, Any], devices: Devices, services: Services) -> SentenceTransformers:
        """Load it onto the GPU where there is one."""
        library = needs("sentence_transformers", f"{SETTING}: {spec['model']}")
        device = "cuda" if devices.gpus else "cpu"
        model = library.SentenceTransformer(
            str(find_model(spec["model"], SETTING)),
            device=device,
            trust_remote_code=bool(spec.get("trust_remote_code")),
            local_files_only=True,
        )
        return SentenceTransformers(model.eval(), int(spec["batch_size"]))

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """One vector a text; the library batches texts of similar length."""
        began = time.perf_counter()
        vectors = self._model.encode(
            list(items), batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False
        )
        seconds = (time.perf_counter() - began) / max(1, len(items))
        counts = [len(ids) for ids in self._model.tokenizer(list(items), truncation=True)["input_ids"]]
        return list(zip(vector_bytes(vectors), [Cost(seconds, n) for n in counts], strict=True))


def library_versions() -> dict[str, str]:
    """Versions of what changes a vector; no import."""
    found = {}
    for name in ("sentence-transformers", "transformers", "torch"):
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found
