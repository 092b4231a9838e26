"""The questions of a RAG sweep and their splits: by the hash of the question, in one order for all configurations.

A question's split depends on its text (or `group_by`), the seed and the fractions alone; `select` takes the hashes at the
bottom, `test` those at the top, `tune` what is between. Within a split questions are in the order of a hash of seed and
id, so the first n are a fixed random sample, and every configuration sees the same ones.

Example:
    >>> splits = load_questions(config.questions_section, load_corpus(config.corpus_section), config.seed_data)
    >>> len(splits.tune), len(splits.test)
    (221, 55)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.answers import Question
from pipelines.data.base import BadRow, Stamp, stamp_of
from pipelines.data.files import content_hash
from pipelines.data.json_rows import JSONReader
from pipelines.rag.config import QuestionFile, QuestionFraction, Questions, RagConfig
from pipelines.rag.corpus import CorpusText
from pipelines.rag.gold import build_question, hold_against
from pipelines.splits import SMALL, unit
from pipelines.stage import UserError

_HELD_OUT = ("select", "test")
_SHOWN = 5
_KEPT = 8


@dataclass(frozen=True)
class QuestionSplits:
    """Questions of every split, each in the sweep-wide order; a split that the file does not name is empty.

    Attributes:
        tune: what decides during the sweep.
        select: what chooses soups.
        test: what the final step opens.
        warnings: sentences for the user.
    """

    tune: tuple[Question, ...]
    select: tuple[Question, ...] = ()
    test: tuple[Question, ...] = ()
    warnings: tuple[str, ...] = ()

    def of(self, split: str) -> tuple[Question, ...]:
        """The questions of a split by its name."""
        found: tuple[Question, ...] = getattr(self, split)
        return found


_SPLITS: dict[tuple[str, int, tuple[Stamp, ...], str], QuestionSplits] = {}
_HASHES: dict[Stamp, str] = {}


def load_questions(questions: Questions, corpus: CorpusText | None, seed: int) -> QuestionSplits:
    """Read, check and split; cached in the process by every file's place, time and size.

    Args:
        questions: the `questions` section, paths absolute.
        corpus: what gold is held against; None leaves gold as it is written.
        seed: `seed_data`; another one gives other splits and another order.

    Raises:
        UserError: on an unreadable file, bad rows (file and line), gold that is not in the corpus, two questions of one
            id, a question that stands in two files, an empty split, or files that are not those `content_hash` tells.
    """
    paths = [questions.path, *(held.path for held in _files(questions).values())]
    key = (
        questions.model_dump_json(),
        seed,
        tuple(stamp_of(path) for path in paths),
        corpus.text_hash if corpus else "",
    )
    if key not in _SPLITS:
        while len(_SPLITS) >= _KEPT:
            del _SPLITS[next(iter(_SPLITS))]
        _SPLITS[key] = _load(questions, corpus, seed)
    return _SPLITS[key]


def count_tune(config: RagConfig) -> int:
    """Questions of `tune`: the total of the resource. The corpus is not read.

    Raises:
        UserError: as `load_questions`, but for gold.
    """
    return len(load_questions(config.questions_section, None, config.seed_data).tune)


def question_hash(path: str) -> str:
    """SHA-256 of a questions file as it is now.

    Raises:
        UserError: if it can't be read.
    """
    stamp = stamp_of(path)
    if stamp not in _HASHES:
        while len(_HASHES) >= _KEPT:
            del _HASHES[next(iter(_HASHES))]
        _HASHES[stamp] = content_hash((path,))
    return _HASHES[stamp]


@dataclass(frozen=True)
class _Placed:
    """A question, its split (empty: by its hash) and its place for people."""

    question: Question
    split: str
    place: str


class _Problems:
    """What is wrong: the first few as sentences, the others counted."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._count = 0

    def add(self, sentence: str) -> None:
        self._count += 1
        if len(self._sentences) < _SHOWN:
            self._sentences.append(sentence)

    @property
    def full(self) -> bool:
        """Whether further sentences are only counted."""
        return self._count >= _SHOWN

    def refuse(self) -> None:
        more = [f"... and {self._count - _SHOWN} more like these"] * (self._count > _SHOWN)
        if self._count:
            raise UserError("\n".join([*self._sentences, *more]))


def _load(questions: Questions, corpus: CorpusText | None, seed: int) -> QuestionSplits:
    problems = _Problems()
    placed = _read(questions.path, questions, questions.content_hash, "", corpus, problems)[: questions.limit]
    for name, held in _files(questions).items():
        placed += _read(held.path, questions, held.content_hash, name, corpus, problems)
    _refuse_doubles(placed, problems)
    problems.refuse()
    splits: dict[str, list[Question]] = {"tune": [], "select": [], "test": []}
    for one in placed:
        splits[one.split or _split_of(one.question, questions.fractions, seed)].append(one.question)
    warnings: list[str] = []
    for name, rows in splits.items():
        if not rows and (name == "tune" or getattr(questions, name) is not None):
            raise UserError(_empty(name, questions))
        if rows:
            warnings += _small(name, len({row.group for row in rows}))
    bare = sum(not row.documents and row.answer is None for rows in splits.values() for row in rows)
    if bare:
        warnings.append(f"{bare} questions have neither gold nor a reference answer; no metric can score them")
    ordered = {name: tuple(sorted(rows, key=lambda row: _order(seed, row.id))) for name, rows in splits.items()}
    return QuestionSplits(**ordered, warnings=tuple(warnings))


def _files(questions: Questions) -> dict[str, QuestionFile]:
    named = {name: getattr(questions, name) for name in _HELD_OUT}
    return {name: held for name, held in named.items() if isinstance(held, QuestionFile)}


def _read(
    path: str,
    section: Questions,
    pinned: str | None,
    split: str,
    corpus: CorpusText | None,
    problems: _Problems,
) -> list[_Placed]:
    found = question_hash(path) if pinned is not None else None
    if found is not None and found != pinned:
        raise UserError(
            f"questions: {path} has changed since the sweep was begun (SHA-256 {found[:12]}..., then {str(pinned)[:12]}...), "
            "so scores could not be compared; put the old content back, or submit a new sweep"
        )
    reader = JSONReader(path)
    placed: list[_Placed] = []
    rows = 0
    for record in reader.records():
        rows += 1
        place = reader.where(record.line)
        try:
            if isinstance(record.value, BadRow):
                raise record.value
            question, texts = build_question(record.value, section)
        except BadRow as error:
            problems.add(f"questions: {place}: {error}")
            continue
        if corpus is not None:
            question, wrong = hold_against(question, texts, corpus, hints=not problems.full)
            for sentence in wrong:
                problems.add(f"questions: {place} (question {question.id!r}): {sentence}")
        placed.append(_Placed(question, split, place))
    if not rows:
        raise UserError(f"questions: {path} holds no question; a row is " + '{"question": "...", "spans": [...]}')
    return placed


def _refuse_doubles(placed: Sequence[_Placed], problems: _Problems) -> None:
    """Two questions of one id, and questions or groups that stand in two files."""
    ids: dict[str, _Placed] = {}
    units: dict[tuple[str, str], _Placed] = {}
    for one in placed:
        other = ids.setdefault(one.question.id, one)
        if other is not one:
            problems.add(
                f"questions: {one.place}: its id {one.question.id!r} is that of {other.place} too; ids must differ "
                "(rows without one are named by their content)"
            )
            continue
        for what, value in (("question", " ".join(one.question.text.split())), ("group", one.question.group)):
            first = units.setdefault((what, value), one)
            if first.split != one.split:
                problems.add(
                    f"questions: {one.place} ({one.split}): its {what} stands in {first.place} too, so held-out questions "
                    "would not be held out; delete one"
                )
                break


def _split_of(question: Question, fractions: Mapping[str, float], seed: int) -> str:
    place = unit(seed, question.group)
    if place < fractions.get("select", 0.0):
        return "select"
    return "test" if place >= 1 - fractions.get("test", 0.0) else "tune"


def _order(seed: int, question: str) -> tuple[bytes, str]:
    return hashlib.sha256(f"order:{seed}:{question}".encode()).digest(), question


def _empty(name: str, questions: Questions) -> str:
    held = getattr(questions, name, None)
    if isinstance(held, QuestionFraction):
        return (
            f"questions.{name} is empty: a fraction of {held.fraction} of the questions of {questions.path} holds none; "
            "raise the fraction or give it a file of its own"
        )
    return f"questions: no question of {questions.path} is left for {name}; lower the fractions of select and test"


def _small(name: str, n: int) -> list[str]:
    if n >= SMALL:
        return []
    width = 1.96 * 0.5 / math.sqrt(n)
    return [
        f"{name} has {n} questions: a share measured on them is known to ±{width:.2f} only (95 %), "
        "so smaller differences can't be shown"
    ]
