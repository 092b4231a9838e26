"""Static word vectors (wordllama, MIT): a text's vector is the mean of its tokens' vectors. Runs on NumPy alone.

The package's own loader asks a hub for a file that the package ships elsewhere, and its import sets up logging for the
whole process. So its two files are read here without importing it: the vectors (32,000 x 256, float16) and the tokenizer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipelines.calls import Answers, Identity, Role
from pipelines.extras import missing
from pipelines.hashes import file_hash
from pipelines.memo import Cost
from pipelines.packages import package_path
from pipelines.rag.embed import vector_bytes
from pipelines.stage import Devices, Services, UserError
from pipelines.versions import library_versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = "weights/l2_supercat_256.safetensors"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
FUNCTION = 1


class WordLlama:
    """The resident kind `wordllama`."""

    role: ClassVar[Role] = "embedder"
    remote: ClassVar[bool] = False

    def __init__(self, dimension: int) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        [vectors] = load_file(str(_file(WEIGHTS))).values()
        self._vectors: NDArray[np.float32] = vectors[:, :dimension].astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(_file(TOKENIZER)))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        """By the hash of both files."""
        return Identity(FUNCTION, f"{_hash()}/{spec['dimension']}", versions=library_versions("tokenizers"))

    @staticmethod
    def load(spec: Mapping[str, Any], devices: Devices, services: Services) -> WordLlama:
        """Read the vectors."""
        return WordLlama(int(spec["dimension"]))

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """One vector a text; zeros for one without a known token."""
        began = time.perf_counter()
        encodings = self._tokenizer.encode_batch(list(items), add_special_tokens=False)
        vectors = np.zeros((len(items), self._vectors.shape[1]), dtype=np.float32)
        for row, encoding in zip(vectors, encodings, strict=True):
            if encoding.ids:
                row[:] = self._vectors[encoding.ids].mean(axis=0)
        seconds = (time.perf_counter() - began) / max(1, len(items))
        costs = [Cost(seconds, len(encoding.ids)) for encoding in encodings]
        return list(zip(vector_bytes(vectors), costs, strict=True))


def _file(name: str) -> Path:
    setting = "embedding_model: wordllama"
    try:
        path = package_path(f"package://wordllama/{name}")
    except LookupError:
        raise missing("wordllama", setting) from None
    if not path.is_file():
        raise UserError(
            f"{setting}: the package wordllama that is installed has no {name}; pip install 'wordllama==0.4.*'"
        )
    return path


@lru_cache(maxsize=1)
def _hash() -> str:
    whole = hashlib.sha256()
    for name in (WEIGHTS, TOKENIZER):
        whole.update(bytes.fromhex(file_hash(_file(name))))
    return whole.hexdigest()
