"""What one RAG trial is: `pipeline: {type: rag}`. Every stage is a choice told apart by `type`; any key can be swept.

Only pydantic and the standard library are imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipelines.fields import HASH_PATTERN, Config, wrong
from pipelines.rag.models import EmbeddingModel, GeneratorConfig, NoGenerator
from pipelines.rag.stages import (
    ChunkConfig,
    CorrectConfig,
    Corrective,
    FixedCharacters,
    NoCorrection,
    NoReranker,
    RerankConfig,
    RetrieveConfig,
)


class Corpus(Config):
    """The documents."""

    path: str
    """File, folder or pattern of files: Markdown, text, HTML, PDF, JSONL (relative to the sweep file). A document's id is its path below the folder, a JSONL row's its own."""
    field_id: str = "id"
    """Key of a JSONL row's document id."""
    field_text: str = "text"
    """Key of a JSONL row's text."""
    content_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 over all files; filled in by `submit`, so that a changed corpus is refused."""


class QuestionFraction(Config):
    """A share of the questions, by hash of the question: stable and disjoint."""

    fraction: float = Field(gt=0, lt=1)
    """Share of the questions."""


class QuestionFile(Config):
    """Questions of a split in a file of their own; the other keys are those of `questions`."""

    path: str
    """JSONL file (relative to the sweep file)."""
    content_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the file; filled in by `submit`."""


def _held_out_form(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<file>" if "path" in value else "<fraction>"
    return "<file>" if isinstance(value, QuestionFile) else "<fraction>"


HeldOutQuestions = Annotated[
    Annotated[QuestionFile, Tag("<file>")] | Annotated[QuestionFraction, Tag("<fraction>")],
    Discriminator(_held_out_form),
]
"""Questions that decide nothing during the sweep."""


class Questions(Config):
    """The questions and their splits: what neither `select` nor `test` takes is `tune`."""

    path: str
    """JSONL file: a question a row, with any of gold spans, gold document ids, reference answer (relative to the sweep file)."""
    select: HeldOutQuestions | None = None
    """Questions that choose soups; none by default."""
    test: HeldOutQuestions | None = None
    """Questions opened once, by the final step; none by default."""
    field_id: str = "id"
    """Key of the question's id; rows without it are named by their content."""
    field_question: str = "question"
    """Key of the question."""
    field_answer: str = "answer"
    """Key of the reference answer."""
    field_spans: str = "spans"
    """Key of the gold spans: a list of {document, start, end, text}; `text`, where given, must be what stands there, and may stand alone where it stands once in the document."""
    field_documents: str = "documents"
    """Key of the gold document ids: one, or a list. Suffixes may be left out: `billing` for `billing.md`."""
    field_span_document: str | None = None
    """Key of the row that holds the document of its spans, where the spans themselves don't name one."""
    group_by: str | None = None
    """Key whose value keeps questions together in splits and clusters errors; default: the question."""
    limit: int | None = Field(default=None, ge=1)
    """Questions of `path` used at most, the first ones in file order; all by default."""
    content_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the file; filled in by `submit`, so that changed questions are refused."""

    @property
    def fractions(self) -> dict[str, float]:
        """The splits that are shares of the file."""
        named = {"select": self.select, "test": self.test}
        return {name: split.fraction for name, split in named.items() if isinstance(split, QuestionFraction)}

    @model_validator(mode="after")
    def fractions_leave_questions_to_tune_on(self) -> Questions:
        """The fractions sum to less than 1."""
        if sum(self.fractions.values()) >= 1:
            raise wrong(
                next(iter(self.fractions)), "the fractions leave no question to tune on; they must sum to less than 1"
            )
        return self


def _word_or_section(value: Any) -> str:
    return "<word>" if isinstance(value, str) else "<section>"


class RagConfig(Config):
    """Retrieval-augmented generation: corpus, chunks, retrieval, reranking, answers."""

    type: Literal["rag"] = "rag"
    corpus: Annotated[
        Annotated[str, Tag("<word>")] | Annotated[Corpus, Tag("<section>")], Discriminator(_word_or_section)
    ]
    """The documents: a path, or a section."""
    questions: Annotated[
        Annotated[str, Tag("<word>")] | Annotated[Questions, Tag("<section>")], Discriminator(_word_or_section)
    ]
    """The questions: a path, or a section."""
    chunk: ChunkConfig = FixedCharacters()
    """How documents are cut into passages."""
    retrieve: RetrieveConfig
    """How passages are found, and how many the generator gets."""
    rerank: RerankConfig = NoReranker()
    """How what was found is put into order again."""
    correct: CorrectConfig = NoCorrection()
    """Whether what was found is graded, refined and searched again."""
    generate: GeneratorConfig = NoGenerator()
    """What writes the answers; without one, retrieval alone is scored."""
    answer_embedding: EmbeddingModel | None = None
    """Embedding model of the similarity metrics, the same in all trials."""
    seed_data: int = 0
    """Seed of the split hashes and of the order of questions; the same in all trials."""

    @model_validator(mode="after")
    def rewriting_has_a_generator(self) -> RagConfig:
        """`correct.rewrite: generator` asks the pipeline's own generator."""
        if (
            isinstance(self.correct, Corrective)
            and self.correct.rewrite == "generator"
            and self.generate.type == "none"
        ):
            raise wrong(
                "correct", "rewrite: generator asks `generate`, which is none; name one, or write rewrite: none"
            )
        return self

    @property
    def corpus_section(self) -> Corpus:
        """`corpus` as a section."""
        return self.corpus if isinstance(self.corpus, Corpus) else Corpus(path=self.corpus)

    @property
    def questions_section(self) -> Questions:
        """`questions` as a section."""
        return self.questions if isinstance(self.questions, Questions) else Questions(path=self.questions)

    def moot(self) -> dict[str, str]:
        """Keys that were given a value but have no effect, and why."""
        return {}
