"""The stages of a RAG trial as the sweep file names them. Only pydantic and the standard library are imported."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.fields import HASH_PATTERN, Config, wrong
from pipelines.rag.models import EmbeddingModel


class FixedCharacters(Config):
    """Windows of a fixed number of characters."""

    type: Literal["fixed_characters"] = "fixed_characters"
    size: int = Field(default=800, ge=16)
    """Characters of a chunk."""
    overlap: int = Field(default=0, ge=0)
    """Characters that two neighbours share."""

    @model_validator(mode="after")
    def overlap_is_less_than_size(self) -> FixedCharacters:
        """Each chunk begins after the one before it."""
        if self.overlap >= self.size:
            raise wrong("overlap", f"{self.overlap} is not less than size, {self.size}; lower it")
        return self


class FixedTokens(Config):
    """Windows of a fixed number of tokens of a named tokenizer."""

    type: Literal["fixed_tokens"] = "fixed_tokens"
    tokenizer: str
    """Hub id, folder, or `package://module/path` of a model whose `tokenizer.json` counts."""
    size: int = Field(default=256, ge=8)
    """Tokens of a chunk."""
    overlap: int = Field(default=0, ge=0)
    """Tokens that two neighbours share."""

    @model_validator(mode="after")
    def overlap_is_less_than_size(self) -> FixedTokens:
        """Each chunk begins after the one before it."""
        if self.overlap >= self.size:
            raise wrong("overlap", f"{self.overlap} is not less than size, {self.size}; lower it")
        return self


class Sentences(Config):
    """Whole sentences, as many as fit."""

    type: Literal["sentences"] = "sentences"
    size: int = Field(default=800, ge=16)
    """Characters of a chunk at most; a longer sentence is a chunk of its own."""
    overlap: int = Field(default=0, ge=0)
    """Sentences that two neighbours share."""


class Recursive(Config):
    """Split at the coarsest separator that makes pieces small enough: paragraphs, lines, sentences, words."""

    type: Literal["recursive"] = "recursive"
    size: int = Field(default=800, ge=16)
    """Characters of a chunk at most."""
    overlap: int = Field(default=0, ge=0)
    """Characters that two neighbours share at most."""
    separators: tuple[str, ...] = ("\n\n", "\n", ". ", " ", "")
    """Tried in this order; the empty one cuts anywhere."""

    @model_validator(mode="after")
    def overlap_is_less_than_size(self) -> Recursive:
        """Each chunk begins after the one before it."""
        if self.overlap >= self.size:
            raise wrong("overlap", f"{self.overlap} is not less than size, {self.size}; lower it")
        return self


class Semantic(Config):
    """Cut where neighbouring sentences differ most in meaning."""

    type: Literal["semantic"] = "semantic"
    embedding_model: EmbeddingModel = "wordllama"
    """What tells how far two sentences are apart."""
    breakpoint: Literal["percentile", "interquartile", "gradient", "standard_deviation"] = "percentile"
    """How the distance at which is cut follows from all distances of a document."""
    amount: float | None = Field(default=None, gt=0)
    """Percentile (95), multiple of the interquartile range (1.5), percentile of the gradient (95), standard deviations (3)."""
    window: int = Field(default=1, ge=0)
    """Neighbours on each side that a sentence is embedded with."""
    size: int | None = Field(default=None, ge=16)
    """Characters of a chunk at most; no bound by default."""


ChunkConfig = Annotated[FixedCharacters | FixedTokens | Sentences | Recursive | Semantic, Field(discriminator="type")]
"""How documents are cut."""


Distance = Literal["cosine", "inner_product", "l2"]


class FaissFlat(Config):
    """FAISS Flat: exact."""

    type: Literal["faiss_flat"] = "faiss_flat"
    distance: Distance = "cosine"
    """How near two vectors are."""


class FaissHNSW(Config):
    """FAISS HNSW: a graph, approximate; built with one thread and a seed."""

    type: Literal["faiss_hnsw"] = "faiss_hnsw"
    distance: Distance = "cosine"
    """How near two vectors are."""
    neighbors: int = Field(default=32, ge=2)
    """Links a node (M)."""
    ef_construction: int = Field(default=200, ge=1)
    """Candidates while building."""
    ef_search: int = Field(default=64, ge=1)
    """Candidates while searching."""


class FaissIVF(Config):
    """FAISS IVF: lists around centroids, approximate."""

    type: Literal["faiss_ivf"] = "faiss_ivf"
    distance: Distance = "cosine"
    """How near two vectors are."""
    lists: int | None = Field(default=None, ge=1)
    """Centroids; default 4 x the square root of the number of chunks."""
    probes: int = Field(default=8, ge=1)
    """Lists searched."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the clustering."""


class Chroma(Config):
    """Chroma: HNSW, approximate unless `ef_search` is at least the number of chunks."""

    type: Literal["chroma"] = "chroma"
    distance: Distance = "cosine"
    """How near two vectors are; Chroma's own default would be l2."""
    neighbors: int = Field(default=16, ge=2)
    """Links a node (M)."""
    ef_construction: int = Field(default=100, ge=1)
    """Candidates while building."""
    ef_search: int | Literal["exact"] = 100
    """Candidates while searching; `exact` takes all and is verified at recall 1."""


StoreConfig = Annotated[FaissFlat | FaissHNSW | FaissIVF | Chroma, Field(discriminator="type")]
"""Where vectors lie."""


class ContextBudget(Config):
    """How much text the generator gets, whatever the chunks' size; the passage that would pass it is cut."""

    characters: int | None = Field(default=None, ge=1)
    """Characters of passages."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens of passages, counted by `tokenizer`."""
    tokenizer: str | None = None
    """As in `chunk: {type: fixed_tokens}`; needed with `tokens`."""

    @model_validator(mode="after")
    def one_unit_is_given(self) -> ContextBudget:
        """Characters or tokens, and a tokenizer with tokens."""
        if (self.characters is None) == (self.tokens is None):
            raise wrong("characters", "give one of characters and tokens")
        if self.tokens is not None and self.tokenizer is None:
            raise wrong("tokenizer", "is missing; name the model whose tokens are counted")
        return self


class Retrieval(Config):
    """What every way to retrieve has."""

    top_k: int | None = Field(default=None, ge=1)
    """Passages the generator gets; 5 by default, where no `context_budget` is given."""
    context_budget: ContextBudget | None = None
    """How much text the generator gets, in place of `top_k`."""

    @model_validator(mode="after")
    def one_limit_is_given(self) -> Retrieval:
        """`top_k` or `context_budget`."""
        if self.top_k is not None and self.context_budget is not None:
            raise wrong("context_budget", "top_k and context_budget are both given; delete one")
        return self


class Terms(Config):
    """How BM25 weighs words (bm25s)."""

    k1: float = Field(default=1.5, gt=0)
    """How soon a word's repetition stops to count."""
    b: float = Field(default=0.75, ge=0, le=1)
    """How far a chunk's length counts."""
    variant: Literal["lucene", "robertson", "atire", "bm25l", "bm25+"] = "lucene"
    """Formula."""
    stopwords: Literal["english", "none"] = "english"
    """Words that are left out."""


class BM25(Retrieval, Terms):
    """BM25 over words: exact."""

    type: Literal["bm25"] = "bm25"


class Dense(Retrieval):
    """Nearest vectors."""

    type: Literal["dense"] = "dense"
    embedding_model: EmbeddingModel
    """What makes vectors."""
    store: StoreConfig = FaissFlat()
    """Where they lie."""


class ReciprocalRank(Config):
    """Reciprocal rank fusion: sum of 1 / (k + rank)."""

    type: Literal["rrf"] = "rrf"
    k: float = Field(default=60.0, gt=0)
    """How much the first ranks count above the others."""


class WeightedScores(Config):
    """Weighted sum of both scores, each scaled to 0..1 over its list."""

    type: Literal["weighted"] = "weighted"
    dense: float = Field(default=0.5, ge=0, le=1)
    """Weight of the dense score; BM25 gets the rest."""


class Hybrid(Retrieval):
    """BM25 and nearest vectors, fused."""

    type: Literal["hybrid"] = "hybrid"
    embedding_model: EmbeddingModel
    """What makes vectors."""
    store: StoreConfig = FaissFlat()
    """Where they lie."""
    bm25: Terms = Terms()
    """How words are weighed."""
    fusion: Annotated[ReciprocalRank | WeightedScores, Field(discriminator="type")] = ReciprocalRank()
    """How the two lists become one."""
    candidates: int = Field(default=50, ge=1)
    """Passages taken from each list."""


class MMR(Retrieval):
    """Maximal marginal relevance: near to the question, and unlike what was taken before (Carbonell & Goldstein 1998)."""

    type: Literal["mmr"] = "mmr"
    embedding_model: EmbeddingModel
    """What makes vectors."""
    store: StoreConfig = FaissFlat()
    """Where they lie."""
    relevance: float = Field(default=0.5, ge=0, le=1)
    """The paper's lambda: 1 asks for relevance alone, 0 for novelty alone."""
    candidates: int = Field(default=50, ge=1)
    """Nearest passages chosen among."""


RetrieveConfig = Annotated[BM25 | Dense | Hybrid | MMR, Field(discriminator="type")]
"""How passages are found."""


class NoReranker(Config):
    """The retriever's order stays."""

    type: Literal["none"] = "none"


class CrossEncoder(Config):
    """A sentence-transformers cross-encoder reads question and passage together."""

    type: Literal["cross_encoder"] = "cross_encoder"
    model: str
    """Hub id, folder, or `package://module/path`."""
    candidates: int = Field(default=20, ge=1)
    """Passages scored a question."""
    batch_size: int = Field(default=32, ge=1)
    """Pairs in one forward pass."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only if you trust it."""


class MaxSim(Config):
    """Late interaction: each token of the question with its nearest token of the passage (ColBERT's score)."""

    type: Literal["maxsim"] = "maxsim"
    model: str
    """Sentence-transformers model whose token vectors are used: hub id, folder, or `package://module/path`."""
    candidates: int = Field(default=20, ge=1)
    """Passages scored a question."""
    batch_size: int = Field(default=32, ge=1)
    """Texts in one forward pass."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only if you trust it."""


class LLMReranker(Config):
    """A language model is asked whether the passage answers the question; the logits of yes and no are the score."""

    type: Literal["llm"] = "llm"
    base_model: str
    """Hub id, folder, GGUF file, `package://module/path`, or `sweep://NAME/{best|soup|TRIAL}`."""
    base_model_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the weights; filled in for `sweep://` sources."""
    prompt: str = (
        "Passage: {passage}\n\nQuestion: {question}\n\nDoes the passage answer the question? Answer yes or no.\nAnswer:"
    )
    """Template of the prompt; `{question}` and `{passage}` are filled in."""
    candidates: int = Field(default=10, ge=1)
    """Passages scored a question."""
    batch_size: int = Field(default=8, ge=1)
    """Prompts in one forward pass."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only if you trust it."""


RerankConfig = Annotated[NoReranker | CrossEncoder | MaxSim | LLMReranker, Field(discriminator="type")]
"""How what was found is put into order again."""


class NoCorrection(Config):
    """What was retrieved is used as it is."""

    type: Literal["none"] = "none"


class Corrective(Config):
    """Corrective RAG (Yan et al. 2024, arXiv 2401.15884) over the same corpus: grade, refine by strips, search again."""

    type: Literal["corrective"] = "corrective"
    grader: Annotated[CrossEncoder | MaxSim | LLMReranker, Field(discriminator="type")]
    """What scores a passage for a question, 0..1 for cross-encoders and yes/no logits."""
    upper: float = 0.6
    """A passage at or above it: what was retrieved is correct, and refined."""
    lower: float = 0.2
    """All passages below it: what was retrieved is incorrect, and replaced by another search. Between: both."""
    refine: bool = True
    """Keep only the strips (one or two sentences) of a passage that score at least `lower`."""
    rewrite: Literal["none", "generator"] = "none"
    """Who rewrites the question for the other search."""
    search: Annotated[BM25 | Dense | Hybrid | MMR, Field(discriminator="type")] | None = None
    """The other search; default: the same with `widen` times as many passages."""
    widen: float = Field(default=3.0, ge=1)
    """How many times as many passages the other search takes."""
    rounds: int = Field(default=1, ge=1, le=5)
    """Searches beyond the first at most."""

    @model_validator(mode="after")
    def thresholds_are_in_order(self) -> Corrective:
        """`lower` is not above `upper`."""
        if self.lower > self.upper:
            raise wrong("lower", f"{self.lower:g} is above upper, {self.upper:g}; lower it")
        return self


CorrectConfig = Annotated[NoCorrection | Corrective, Field(discriminator="type")]
"""Whether what was found is graded and corrected."""
