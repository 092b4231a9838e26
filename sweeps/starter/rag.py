"""A sweep file for RAG over the user's own documents and questions: what to write, from what was seen of them."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluators.answers import Question
from pipelines.data.base import BadRow
from pipelines.data.json_rows import JSONReader
from pipelines.extras import EXTRA
from pipelines.rag.config import Corpus, QuestionFraction, Questions
from pipelines.rag.corpus import CorpusText, load_corpus
from pipelines.rag.questions import QuestionSplits, load_questions
from pipelines.stage import UserError
from sweeps.local import absolute_path
from sweeps.starter.base import QUESTION_PARTS, Request, Starter, laid_out
from sweeps.starter.naming import sweep_name, written_path
from sweeps.starter.questions import recognise, span_owner
from sweeps.starter.quote import quoted

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Small enough to learn with on any machine."""
VECTORS = "wordllama"
LOOKED_AT = 2_000
"""Questions whose keys are looked at."""
SUFFIXES = (".jsonl", ".json", ".ndjson")
IDS, TEXTS = (
    ("id", "_id", "doc_id", "document_id", "url", "path"),
    ("text", "content", "page_content", "body", "passage"),
)
"""Names of a JSONL document's id and text."""
METRICS = {
    "spans": ("span_recall", "share of the gold spans that the generator is given; larger is better"),
    "documents": ("document_recall", "share of the gold documents that the generator is given; larger is better"),
    "answer": ("token_f1", "words shared with the reference answer; larger is better"),
}
"""Gold -> what ranks by it, the most telling first."""
WANTED, SHARE_AT_LEAST, SHARE_AT_MOST, SPLIT_FROM = 50, 0.1, 0.25, 20
"""Test questions: this many where a share of at most a quarter gives them, and none of under 20 questions."""
BLOCK, RACE_FROM, FINALISTS, ANSWERED = 20, 60, 4, 40
SIZES, OVERLAPS = (400, 800, 1600), (0, 100)
CONTEXT, SMALL_CONTEXT, SMALL_CORPUS = 4000, 1200, 40_000
"""Characters that the generator gets; less of a corpus that would fit in as a whole."""


@dataclass(frozen=True)
class Plan:
    """What the file will say.

    Attributes:
        corpus: its section, `path` as the file will write it.
        questions: their section, `path` as the file will write it.
        gold: spans, documents, answer -> questions that have it.
        documents: how many.
        characters: of all documents.
        sizes: split -> questions.
        base_model: what writes answers; None for a sweep of retrieval alone.
        vectors: whether embeddings can be made here.
    """

    corpus: Corpus
    questions: Questions
    gold: Mapping[str, int]
    documents: int
    characters: int
    sizes: Mapping[str, int]
    base_model: str | None
    vectors: bool = True

    @property
    def ranks_by(self) -> str:
        """The gold that most questions have, the most telling one of equals."""
        return max(METRICS, key=lambda kind: self.gold[kind])


def start(request: Request) -> Starter:
    """Look at documents and questions, and write the file's text.

    Raises:
        UserError: if they can't be used as they are; the message says what was seen and what to do.
    """
    if request.type is not None:
        raise UserError(
            "--type says what rows to fine-tune on are; questions have one form: stockpot explain questions"
        )
    if request.questions is None:
        raise UserError(
            f"init rag needs the questions too: stockpot init rag {request.data} questions.jsonl, with lines such as\n"
            '  {"question": "When is the lift tested?", "documents": ["lift.md"], "answer": "on Mondays"}'
        )
    folder = request.output.parent
    corpus_path, path = (absolute_path(given, Path.cwd()) for given in (request.data, request.questions))
    section = _corpus_section(corpus_path)
    corpus = load_corpus(section)
    rows = _rows(path)
    parts = recognise(rows, corpus, request.fields)
    questions = _questions_section(path, parts, span_owner(rows, parts["spans"], corpus) if "spans" in parts else None)
    questions, splits = _split(questions, corpus)
    every = [*splits.tune, *splits.test]
    plan = Plan(
        corpus=section.model_copy(update={"path": written_path(str(corpus_path), folder)}),
        questions=questions.model_copy(update={"path": written_path(str(path), folder)}),
        gold=_gold(every),
        documents=len(corpus.documents),
        characters=sum(len(document.text) for document in corpus.documents),
        sizes={"tune": len(splits.tune), "test": len(splits.test)},
        base_model=request.base_model,
        vectors=importlib.util.find_spec(VECTORS) is not None,
    )
    plan = _with_generator(plan, path)
    unused = [key for key in dict.fromkeys(k for row in rows for k in row) if key not in _used(questions)]
    name = sweep_name([corpus_path, path], folder, "rag")
    return Starter(_text(name, plan), tuple(_found(plan, parts, unused, [*corpus.warnings, *splits.warnings])))


def _corpus_section(path: Path) -> Corpus:
    """The `corpus` section; of JSONL documents with the keys of their first row."""
    section = Corpus(path=str(path))
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return section
    first: Mapping[str, Any] = next(
        (row.value for row in JSONReader(str(path)).records() if not isinstance(row.value, BadRow)), {}
    )
    keys = {"field_id": _first(IDS, first, section.field_id), "field_text": _first(TEXTS, first, section.field_text)}
    return section.model_copy(update={name: key for name, key in keys.items() if key != getattr(section, name)})


def _first(names: tuple[str, ...], row: Mapping[str, Any], default: str) -> str:
    return next((name for name in names if name in row), default)


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.is_dir() or path.name.lower().removesuffix(".gz").rpartition(".")[2] not in {s[1:] for s in SUFFIXES}:
        raise UserError(f"{path}: questions are one JSONL file ({', '.join(SUFFIXES)}), a question a line")
    records = itertools.islice(JSONReader(str(path)).records(), LOOKED_AT)
    rows = [record.value for record in records if not isinstance(record.value, BadRow)]
    if not rows:
        raise UserError(
            f'{path}: holds no question that can be read; a line is {{"question": "...", "documents": ["a.md"]}}'
        )
    return rows


def _questions_section(path: Path, parts: Mapping[str, str], owner: str | None) -> Questions:
    fields = {f"field_{part}": key for part, key in parts.items() if key != part}
    return Questions.model_validate({"path": str(path), **fields, **({"field_span_document": owner} if owner else {})})


def _split(questions: Questions, corpus: CorpusText) -> tuple[Questions, QuestionSplits]:
    """The section with a share for test where there are enough questions, and what that gives.

    Raises:
        UserError: with every question that can't be used.
    """
    whole = load_questions(questions, corpus, 0)
    groups = len({question.group for question in whole.tune})
    if groups < SPLIT_FROM:
        return questions, whole
    share = round(min(SHARE_AT_MOST, max(SHARE_AT_LEAST, WANTED / groups)), 2)
    held = questions.model_copy(update={"test": QuestionFraction(fraction=share)})
    return held, load_questions(held, corpus, 0)


def _gold(every: list[Question]) -> dict[str, int]:
    return {
        "spans": sum(bool(question.spans) for question in every),
        "documents": sum(bool(question.documents) for question in every),
        "answer": sum(question.answer is not None for question in every),
    }


def _with_generator(plan: Plan, path: Path) -> Plan:
    """With a model that writes answers where they are what ranks.

    Raises:
        UserError: if nothing can be scored, or a model would write what nothing scores.
    """
    if not any(plan.gold.values()):
        names = ", ".join(f"--field-{part}=KEY" for part in ("spans", "documents", "answer"))
        raise UserError(
            f"{path}: no question has gold spans, gold documents or a reference answer, so nothing can be scored; add one of "
            f"them, or say what it is called: {names}"
        )
    if plan.base_model is not None and not plan.gold["answer"]:
        raise UserError(
            f"{path}: no question has a reference answer, so nothing would score what {plan.base_model} writes; leave out "
            "--base-model, or say what the answer is called: --field-answer=KEY"
        )
    return replace(plan, base_model=plan.base_model or BASE_MODEL) if plan.ranks_by == "answer" else plan


def _used(questions: Questions) -> set[str | None]:
    return {*(getattr(questions, f"field_{part}") for part in QUESTION_PARTS), questions.field_span_document}


def _found(plan: Plan, parts: Mapping[str, str], unused: list[str], warnings: list[str]) -> list[str]:
    """What was seen, in sentences."""
    total = sum(plan.sizes.values())
    has = [f"{plan.gold[kind]:,} with {word}" for kind, word in _WORDS.items() if plan.gold[kind]]
    said = [
        f"corpus: {plan.corpus.path}, {plan.documents:,} documents, {plan.characters:,} characters",
        f"questions: {plan.questions.path}, {total:,}: {', '.join(has)}",
        "keys: " + ", ".join(f"{key!r} ({part})" for part, key in parts.items()),
    ]
    if unused:
        said.append("not used: " + ", ".join(map(repr, unused[:12])) + (", ..." if len(unused) > 12 else ""))
    if plan.sizes["test"]:
        said.append(f"splits: tune {plan.sizes['tune']:,}, test {plan.sizes['test']:,}")
    else:
        said.append(f"splits: tune alone; under {SPLIT_FROM} questions are too few to keep some for test")
    if not plan.vectors:
        said.append(
            f"dense and hybrid retrieval need pip install 'stockpot[{EXTRA}]'; they stand in the file as comments"
        )
    return said + warnings


_WORDS = {"spans": "gold spans", "documents": "gold documents", "answer": "a reference answer"}


def _text(name: str, plan: Plan) -> str:
    context = CONTEXT if plan.characters >= SMALL_CORPUS else SMALL_CONTEXT
    metric, meaning = METRICS[plan.ranks_by]
    return laid_out(
        "A sweep of RAG configurations",
        [
            (f"name: {name}", "also the folder of its results, under ./stockpot-runs"),
            ("pipeline:", "what one trial is; any key below can be swept"),
            ("  type: rag", "cut the documents, find passages, give them to a model"),
            (f"  corpus: {_corpus_text(plan.corpus)}", f"{plan.documents:,} documents"),
            *_question_lines(plan),
            (
                f"  chunk: {{type: fixed_characters, size: {SIZES[1]}}}",
                "or fixed_tokens, sentences, recursive, semantic",
            ),
            ("  retrieve:", ""),
            ("    type: bm25", ""),
            (
                f"    context_budget: {{characters: {context}}}",
                "what the generator gets: whole passages, the last one cut",
            ),
            *_generate(plan),
            ("parameters:", "what is searched"),
            (f"  chunk.size: {list(SIZES)}", "a list is a choice"),
            (f"  chunk.overlap: {list(OVERLAPS)}", "characters that two neighbours share"),
            *_retrievers(plan),
            ("method: grid", "every combination; random, with budget: {trials: N}, takes some"),
            (f"metric: {metric}", meaning),
            *_race(plan),
            *_evaluate(plan),
        ],
    )


def _corpus_text(corpus: Corpus) -> str:
    return (
        _section(corpus.model_dump(exclude_unset=True)) if corpus.model_fields_set > {"path"} else quoted(corpus.path)
    )


def _section(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {quoted(str(value))}" for key, value in values.items()) + "}"


def _question_lines(plan: Plan) -> list[tuple[str, str]]:
    has = ", ".join(f"{plan.gold[kind]:,} with {word}" for kind, word in _WORDS.items() if plan.gold[kind])
    lines = [("  questions:", has), (f"    path: {quoted(plan.questions.path)}", "")]
    fields = plan.questions.model_dump(exclude_defaults=True, exclude={"path", "test"})
    lines += [(f"    {key}: {quoted(str(value))}", "") for key, value in fields.items()]
    if isinstance(plan.questions.test, QuestionFraction):
        lines.append(
            (f"    test: {{fraction: {plan.questions.test.fraction:g}}}", "opened once, at the end, for the winner")
        )
    return lines


def _generate(plan: Plan) -> list[tuple[str, str]]:
    if not plan.gold["answer"]:
        return []
    mark = "  # " if plan.base_model is None else "  "
    model = quoted(plan.base_model or BASE_MODEL)
    why = (
        "to have answers written too: take away this # and that of evaluate"
        if plan.base_model is None
        else "writes answers"
    )
    return [
        (f"{mark}generate:", why),
        (f"{mark}  type: local", "or openai: any compatible endpoint"),
        (f"{mark}  base_model: {model}", "hub id, folder, GGUF file, package://..., sweep://NAME/soup"),
        (f"{mark}  max_new_tokens: 64", "of an answer"),
    ]


def _retrievers(plan: Plan) -> list[tuple[str, str]]:
    mark = "" if plan.vectors else "# "
    return [
        ("  retrieve:", ""),
        ("    choose:", "each arm can open parameters of its own"),
        ("      bm25: {}", "by the words"),
        (
            f"      {mark}dense: {{embedding_model: [{VECTORS}]}}",
            "by the meaning; any sentence-transformers model, or an endpoint",
        ),
        (f"      {mark}hybrid: {{embedding_model: [{VECTORS}]}}", "by both"),
    ]


def _race(plan: Plan) -> list[tuple[str, str]]:
    if plan.sizes["tune"] < RACE_FROM:
        return []
    last = plan.base_model is not None and plan.ranks_by != "answer"
    rule = f"{{type: race, block: {BLOCK}" + (f", finalists: {FINALISTS}, most: {FINALISTS}}}" if last else "}")
    said = f"who is shown not to be the best after a block leaves{'; the four best answer' if last else ''}"
    return [(f"early_terminate: {rule}", said)]


def _evaluate(plan: Plan) -> list[tuple[str, str]]:
    if not plan.gold["answer"] or plan.ranks_by == "answer":
        return []
    mark = "# " if plan.base_model is None else ""
    return [
        (
            f"{mark}evaluate: [{{type: token_f1, limit: {ANSWERED}}}]",
            f"answers to {ANSWERED} questions, by those that reach the end",
        )
    ]
