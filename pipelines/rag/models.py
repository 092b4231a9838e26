"""Models that a RAG trial asks: embedding models and generators. Only pydantic and the standard library are imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipelines.fields import HASH_PATTERN, URL_PATTERN, Config, wrong

DEFAULT_PROMPT = (
    "Answer the question with the passages alone, as briefly as you can.\n\n{context}\n\nQuestion: {question}\nAnswer:"
)


class Endpoint(Config):
    """An OpenAI-compatible endpoint (vLLM, `transformers serve`, a paid one)."""

    base_url: str = Field(pattern=URL_PATTERN)
    """Address up to and with `/v1`."""
    model: str
    """The model's name there."""
    api_key: str | None = None
    """Name of the variable in `env:` that holds the key; never the key itself."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds that one request may take."""
    retries: int = Field(default=5, ge=0)
    """Times a request is sent again after 429, 5xx, a time-out or a broken answer."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Rate limit over all trials; none by default."""
    concurrency: int = Field(default=8, ge=1)
    """Requests in flight at once, over all trials."""


class SentenceTransformersModel(Config):
    """A sentence-transformers model, mean pooling and all as its own files say."""

    type: Literal["sentence_transformers"] = "sentence_transformers"
    model: str
    """Hub id, folder, or `package://module/path`."""
    query_prefix: str = ""
    """Put before every question; the prompt that the model's own files give, where this is empty."""
    document_prefix: str = ""
    """Put before every passage; the prompt that the model's own files give, where this is empty."""
    batch_size: int = Field(default=32, ge=1)
    """Texts in one forward pass; does not change the vectors beyond rounding."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only if you trust it."""


class WordLlamaModel(Config):
    """Static word vectors (wordllama): no network is run, so it is very fast."""

    type: Literal["wordllama"] = "wordllama"
    dimension: Literal[64, 128, 256] = 256
    """Length of a vector."""


class EmbeddingEndpoint(Endpoint):
    """Embeddings of an OpenAI-compatible endpoint."""

    type: Literal["openai"] = "openai"
    dimension: int | None = Field(default=None, ge=1)
    """Length asked for, where the model can shorten its vectors."""
    query_prefix: str = ""
    """Put before every question."""
    document_prefix: str = ""
    """Put before every passage."""
    batch_size: int = Field(default=64, ge=1)
    """Texts in one request."""
    price_per_million_tokens: float = Field(default=0.0, ge=0)
    """For the cost column, in any one currency."""


def _embedding_form(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("type", "sentence_transformers"))
    return str(getattr(value, "type", "<word>"))


EmbeddingModel = Annotated[
    Annotated[str, Tag("<word>")]
    | Annotated[SentenceTransformersModel, Tag("sentence_transformers")]
    | Annotated[WordLlamaModel, Tag("wordllama")]
    | Annotated[EmbeddingEndpoint, Tag("openai")],
    Discriminator(_embedding_form),
]
"""`wordllama`, or the name of a sentence-transformers model; or a section with a `type`."""


def embedding_model(value: Any) -> SentenceTransformersModel | WordLlamaModel | EmbeddingEndpoint:
    """An `EmbeddingModel` as a section: the word `wordllama`, any other word as a sentence-transformers model."""
    if isinstance(value, str):
        return WordLlamaModel() if value == "wordllama" else SentenceTransformersModel(model=value)
    assert isinstance(value, SentenceTransformersModel | WordLlamaModel | EmbeddingEndpoint), f"not typed: {value!r}"
    return value


class _Asked(Config):
    """What every generator is asked."""

    prompt: str = DEFAULT_PROMPT
    """Template of the prompt; `{question}` and `{context}` are filled in. A path to a text file that holds one is read."""
    system: str | None = None
    """System message before it."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of an answer at most."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy; above it answers are drawn, each from a generator of its own seed."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of drawn answers; the run's seed is added to it."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    context_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the passages at most: the first ones whole, the last one cut. All by default."""


class NoGenerator(Config):
    """No answers: retrieval alone is scored."""

    type: Literal["none"] = "none"


class LocalLM(Config):
    """A causal language model in a resident worker, asked in batches, with its chat template."""

    base_model: str
    """Hub id, folder, GGUF file, `package://module/path`, or `sweep://NAME/{best|soup|TRIAL}`."""
    base_model_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the weights; filled in for `sweep://` sources."""
    batch_size: int = Field(default=8, ge=1)
    """Answers generated at once."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast over fp32 weights in `bf16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only if you trust it."""


class ChatModel(Endpoint):
    """A chat endpoint that speaks OpenAI's protocol."""

    price_per_million_prompt_tokens: float = Field(default=0.0, ge=0)
    """For the cost column, in any one currency."""
    price_per_million_new_tokens: float = Field(default=0.0, ge=0)
    """For the cost column, in the same currency."""


class LocalGenerator(_Asked, LocalLM):
    """A causal language model in a resident worker, asked in batches, with its chat template."""

    type: Literal["local"] = "local"


class EndpointGenerator(_Asked, ChatModel):
    """A chat endpoint that speaks OpenAI's protocol."""

    type: Literal["openai"] = "openai"
    tokenizer: str | None = None
    """Hub id, folder, or `package://module/path` of a model whose `tokenizer.json` counts `context_tokens`."""

    @model_validator(mode="after")
    def context_tokens_need_a_tokenizer(self) -> EndpointGenerator:
        """An endpoint does not say how it counts."""
        if self.context_tokens is not None and self.tokenizer is None:
            raise wrong("tokenizer", "is missing; name the model whose tokens context_tokens counts")
        return self


GeneratorConfig = Annotated[NoGenerator | LocalGenerator | EndpointGenerator, Field(discriminator="type")]
"""What writes answers."""


class _Judging(Config):
    """What is asked of every judge."""

    min_spearman: Annotated[float, Field(gt=0, le=1)] | None = None
    """Rank correlation with people that the sweep's judged metrics must have on their cards (`stockpot evaluate-judge`), with an
    interval above 0."""


class LocalJudge(_Judging, LocalLM):
    """A causal language model in a resident worker, asked greedily."""

    type: Literal["local"] = "local"


class EndpointJudge(_Judging, ChatModel):
    """A chat endpoint that speaks OpenAI's protocol, asked at temperature 0."""

    type: Literal["openai"] = "openai"


JudgeConfig = Annotated[LocalJudge | EndpointJudge, Field(discriminator="type")]
"""The language model that grades answers and passages; the same in all trials."""
