"""Sentence-transformers models: pooling, normalisation and prompts are what the model's own files say.

Weights are read from safetensors alone. A text's vector does not depend on its neighbours in a batch beyond rounding (5e-6
of a cosine).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipelines.calls import Answers, Identity, Role
from pipelines.extras import needs
from pipelines.memo import Cost
from pipelines.packages import first_line, own_code
from pipelines.rag.embed import vector_bytes
from pipelines.rag.model_folder import find_model, folder_hash, pickled_weights
from pipelines.stage import Devices, Services, UserError
from pipelines.versions import library_versions

SETTING = "embedding_model"
FUNCTION = 2
LIBRARIES = ("sentence-transformers", "transformers", "torch")
"""Whose versions change a vector."""


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
        return model_identity(spec, FUNCTION, SETTING)

    @staticmethod
    def load(spec: Mapping[str, Any], devices: Devices, services: Services) -> SentenceTransformers:
        """Load it onto the GPU where there is one.

        Raises:
            UserError: when the package or the model is not there, or the model can't be read.
        """
        model = load_model("SentenceTransformer", spec, devices, SETTING)
        return SentenceTransformers(model, int(spec["batch_size"]))

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """One vector a text; the library batches texts of similar length.

        Args:
            method: `embed`.
            items: texts.
            parameters: `use` is `query` or `document` where the model's own prompts are wanted.
        """
        began = time.perf_counter()
        encode = {"query": self._model.encode_query, "document": self._model.encode_document}.get(
            str(parameters.get("use")), self._plain
        )
        vectors = encode(list(items), batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False)
        seconds = (time.perf_counter() - began) / max(1, len(items))
        return [
            (value, Cost(seconds, tokens))
            for value, tokens in zip(vector_bytes(vectors), self._tokens(items), strict=True)
        ]

    def _plain(self, texts: list[str], **settings: Any) -> Any:
        return self._model.encode(texts, prompt="", **settings)

    def _tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; 0 where the model's tokenizer is none of transformers'."""
        tokenizer = getattr(self._model, "tokenizer", None)
        if not callable(tokenizer):
            return [0] * len(texts)
        return [len(ids) for ids in tokenizer(list(texts), truncation=True)["input_ids"]]


def model_identity(spec: Mapping[str, Any], function: int, setting: str) -> Identity:
    """Of a model of the library: the hash of its folder's files, and versions of what computes with it."""
    folder = find_model(spec["model"], setting, code=bool(spec.get("trust_remote_code")))
    return Identity(function, folder_hash(folder), versions=library_versions(*LIBRARIES))


def load_model(name: str, spec: Mapping[str, Any], devices: Devices, setting: str) -> Any:
    """A model of the library, in evaluation mode.

    Args:
        name: of its class: `SentenceTransformer`, `CrossEncoder`.
        spec: has `model` and `trust_remote_code`.
        devices: the GPU is taken where there is one.
        setting: what in the sweep file names it, for messages.

    Raises:
        UserError: when the package or the model is not there, or the model can't be read.
    """
    library = needs("sentence_transformers", f"{setting}: {spec['model']}")
    code = bool(spec.get("trust_remote_code"))
    folder = find_model(spec["model"], setting, code=code)
    where = f"{setting}: {spec['model']} can't be loaded by sentence-transformers"
    pickled = pickled_weights(folder)
    if pickled is not None:
        raise UserError(f"{where}: {pickled.relative_to(folder)} is a pickle; save the model anew as safetensors")
    try:
        model = getattr(library, name)(
            str(folder),
            device="cuda" if devices.gpus else "cpu",
            trust_remote_code=code,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = own_code(error, "model") or (
            f"{first_line(error)}; it needs a folder with config.json, a tokenizer and safetensors"
        )
        raise UserError(f"{where}: {told}") from error
    return model.eval()
