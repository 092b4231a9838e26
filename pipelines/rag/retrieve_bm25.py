"""BM25 over words (bm25s). A list holds chunks that have one of the question's words at least, however few there are.

Words are runs of two or more letters, digits and underscores, in lower case, without stemming; English stopwords are left
out where the file says so. Languages that don't part words by blanks are not cut into words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.calls import Calls
from pipelines.rag.base import Chunk, Hit
from pipelines.rag.index import top
from pipelines.rag.retrieve import Search, chunks_hash, kept
from pipelines.versions import library_versions

if TYPE_CHECKING:
    from pipelines.rag.stages import Terms


class BM25Retriever:
    """Scores every chunk for every question.

    Args:
        config: how words are weighed.
        chunks: of the whole corpus.
        calls: not asked; here as in every retriever.

    Attributes:
        identity: everything the lists depend on but the question.
        prefix: always true.
    """

    prefix = True

    def __init__(self, config: Terms, chunks: Sequence[Chunk], calls: Calls) -> None:
        self._config = config
        self._chunks = chunks
        words = {"chunks": chunks_hash(chunks), "stopwords": config.stopwords, "versions": library_versions("bm25s")}
        self._cut = words
        self.identity: Mapping[str, Any] = {
            "type": "bm25",
            **words,
            **{name: getattr(config, name) for name in ("k1", "b", "variant")},
        }

    def ready(self, questions: Sequence[str]) -> Search:
        """See `Maker.ready`."""
        index = kept("bm25", self.identity, self._build, _nbytes)
        return lambda k: [self._search(index, words, k) for words in self._words(questions)]

    def store_recall(self, questions: Sequence[str], k: int) -> float | None:
        """There is no vector store."""
        return None

    def _build(self) -> Any:
        """The index; None where no chunk has a word."""
        import bm25s

        def cut() -> list[list[str]]:
            return self._words([chunk.text for chunk in self._chunks])

        words = kept("words", self._cut, cut, lambda found: 16 * sum(map(len, found)))
        if not any(words):
            return None
        index = bm25s.BM25(k1=self._config.k1, b=self._config.b, method=self._config.variant)
        index.index(words, show_progress=False)
        return index

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        import bm25s

        stopwords = "en" if self._config.stopwords == "english" else []
        found: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords=stopwords, return_ids=False, show_progress=False, lower=True
        )
        return found

    def _search(self, index: Any, words: Sequence[str], k: int) -> list[Hit]:
        known = [] if index is None else [word for word in words if word in index.vocab_dict]
        if not known:
            return []
        scores = np.asarray(index.get_scores(known), dtype=np.float64)
        having = self._having(index, known)
        places = having[top(scores[having], k)]
        return [Hit(int(place), float(scores[place])) for place in places]

    def _having(self, index: Any, words: Sequence[str]) -> Any:
        """The chunks that have one of the words, in order; some variants score the others above 0 too."""
        ends, chunks = index.scores["indptr"], index.scores["indices"]
        ids = [index.vocab_dict[word] for word in words]
        return np.unique(np.concatenate([chunks[ends[i] : ends[i + 1]] for i in ids]))


def _nbytes(index: Any) -> int:
    return 0 if index is None else int(sum(index.scores[name].nbytes for name in ("data", "indices", "indptr")))
