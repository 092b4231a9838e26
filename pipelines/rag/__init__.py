"""RAG pipelines: what finds passages and writes answers. Stages are loaded by name on first use."""

from __future__ import annotations

import importlib
from typing import Any

READERS: dict[str, str] = {
    ".md": "pipelines.rag.corpus_text:read_text",
    ".markdown": "pipelines.rag.corpus_text:read_text",
    ".txt": "pipelines.rag.corpus_text:read_text",
    ".html": "pipelines.rag.corpus_html:read_html",
    ".htm": "pipelines.rag.corpus_html:read_html",
    ".pdf": "pipelines.rag.corpus_pdf:read_pdf",
    ".jsonl": "pipelines.rag.corpus_jsonl:read_rows",
}
"""Suffix of a corpus file -> what reads its documents."""
CHUNKERS: dict[str, str] = {
    "fixed_characters": "pipelines.rag.chunk_fixed:FixedCharactersChunker",
    "fixed_tokens": "pipelines.rag.chunk_tokens:FixedTokensChunker",
    "sentences": "pipelines.rag.chunk_sentences:SentencesChunker",
    "recursive": "pipelines.rag.chunk_recursive:RecursiveChunker",
    "semantic": "pipelines.rag.chunk_semantic:SemanticChunker",
}
"""`chunk.type` -> its class."""
EMBEDDERS: dict[str, str] = {
    "sentence_transformers": "sentence_transformers",
    "wordllama": "wordllama",
    "openai": "openai_embeddings",
}
"""`type` of an embedding model -> its kind of resident model."""
STORES: dict[str, str] = {
    "faiss_flat": "pipelines.rag.index_faiss:FlatStore",
    "faiss_hnsw": "pipelines.rag.index_faiss:HNSWStore",
    "faiss_ivf": "pipelines.rag.index_faiss:IVFStore",
    "chroma": "pipelines.rag.index_chroma:ChromaStore",
}
"""`store.type` -> its class."""
RETRIEVERS: dict[str, str] = {
    "bm25": "pipelines.rag.retrieve_bm25:BM25Retriever",
    "dense": "pipelines.rag.retrieve_dense:DenseRetriever",
    "hybrid": "pipelines.rag.retrieve_dense:HybridRetriever",
    "mmr": "pipelines.rag.retrieve_dense:MMRRetriever",
}
"""`retrieve.type` -> its class."""
RERANKERS: dict[str, str] = {
    "none": "pipelines.rag.rerank:OrderKept",
    "cross_encoder": "pipelines.rag.rerank:PairReranker",
    "maxsim": "pipelines.rag.rerank:PairReranker",
    "llm": "pipelines.rag.rerank:YesNoReranker",
}
"""`rerank.type` -> its class."""
GENERATORS: dict[str, str] = {
    "none": "pipelines.rag.generate:no_generator",
    "local": "pipelines.rag.generate:Generator",
    "openai": "pipelines.rag.generate:Generator",
}
"""`generate.type` -> what makes it."""


def load_stage(table: dict[str, str], name: str) -> Any:
    """The class or function that a table names.

    Raises:
        KeyError: if the table has no such name; the door has checked it.
    """
    module, _, member = table[name].partition(":")
    return getattr(importlib.import_module(module), member)
