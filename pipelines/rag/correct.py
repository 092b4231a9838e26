"""Corrective RAG (Yan et al. 2024, arXiv 2401.15884) over the same corpus: grade, branch, search again, refine.

A grader scores every passage that was retrieved; two thresholds name the action (the paper's Table and
`CRAG_Inference.py`):

- correct: a passage reaches `upper`. What was retrieved is used.
- ambiguous: none does, but one reaches `lower`. What was retrieved and what another search finds are used.
- incorrect: none reaches `lower`. What another search finds takes its place.

The other search (the paper's is the web's) asks another retriever, or the same one for more, up to `rounds` times, wider each
time and with the question rewritten where that is asked for, until a passage that it finds reaches `upper`. What is used
is ordered by its grade, and refined: a passage is decomposed into strips of two sentences, strips that reach `lower` are
kept, and neighbours among them recomposed, so a refined passage is a slice of its document with offsets of its own.

Left out of the paper: its trained evaluator (any grader does), web search, and a threshold of its own for strips. Beside
it: a passage without a grade is used whole, behind those that have one; where no strip is kept, passages stay whole; and
if nothing has a grade, nothing is corrected.

Example:
    >>> corrector = Corrector(config.correct, grader, search, None, top_k=3)
    >>> corrected = corrector.correct("How much is the deposit?", ranked)
    >>> corrected.action, [passage.text for passage in corrected.context]
    ('correct', ['The deposit is 300 euros. '])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from evaluators.answers import Passage
from pipelines.rag.base import Reranker
from pipelines.rag.context import TOP_K, cut
from pipelines.rag.sentences import sentences
from pipelines.rag.stages import ContextBudget, Corrective

Action = Literal["correct", "ambiguous", "incorrect", "ungraded"]
Search = Callable[[str, int], Sequence[Passage]]
"""Question, and how many passages -> those found, best first."""
Rewrite = Callable[[str], str | None]
"""A question in other words; None where none could be made."""

STAGE = "correct"
"""What the loop asks beyond plain retrieval counts as this in `Calls.usage`."""
STRIP = 2
"""Sentences of a strip."""
REWRITE_PROMPT = (
    "Rewrite the question as a short search query with the words that a text answering it would use. "
    "Reply with the query alone.\n\nQuestion: {question}\nQuery:"
)
REWRITE_TOKENS = 48


@dataclass(frozen=True)
class Corrected:
    """One question after the loop.

    Attributes:
        action: what the grades of the first search asked for.
        ranked: whole passages: those that are used by their grade, then what was put aside.
        context: what the generator gets; parts of passages where they were refined.
        searches: how often was searched beyond the first.
    """

    action: Action
    ranked: tuple[Passage, ...]
    context: tuple[Passage, ...]
    searches: int = 0


class Corrector:
    """The loop of one configuration. It holds no model: grader, search and rewriter are given.

    Args:
        config: thresholds, rounds, and what else the file says.
        grader: scores passages; its `candidates` are the first passages of a list that are graded.
        search: the other search.
        rewrite: puts a question into other words; None searches for the question itself.
        top_k: passages that the context is made of, each refined.
        budget: text of the context, in place of `top_k`.
    """

    def __init__(
        self,
        config: Corrective,
        grader: Reranker,
        search: Search,
        rewrite: Rewrite | None = None,
        *,
        top_k: int | None = None,
        budget: ContextBudget | None = None,
    ) -> None:
        self.config = config
        self._grader = grader
        self._search = search
        self._rewrite = rewrite
        self._top_k = top_k or TOP_K
        self._budget = budget

    def correct(self, question: str, ranked: Sequence[Passage]) -> Corrected:
        """Grade what was retrieved, and make it better where it falls short."""
        head, tail = ranked[: self.config.grader.candidates], ranked[self.config.grader.candidates :]
        inside = self._graded(question, head)
        action = action_of([passage.score for passage in inside], self.config.upper, self.config.lower)
        if action == "ungraded":
            return Corrected(action, tuple(ranked), tuple(cut(ranked, self._top_k, self._budget)))
        outside: list[Passage] = []
        searches = 0
        if action != "correct":
            outside, searches = self._searched(question, inside)
        used = by_grade(inside if action == "correct" else outside if action == "incorrect" else [*inside, *outside])
        used = used or by_grade(inside)
        known = {_place(passage) for passage in used}
        aside = [passage for passage in (*by_grade(inside), *tail) if _place(passage) not in known]
        return Corrected(action, (*used, *aside), tuple(self._context(question, used)), searches)

    def _graded(self, question: str, passages: Sequence[Passage]) -> list[Passage]:
        """The passages with their grades as scores."""
        if not passages:
            return []
        grades = self._grader.scores(question, [passage.text for passage in passages])
        return [replace(passage, score=grade) for passage, grade in zip(passages, grades, strict=True)]

    def _searched(self, question: str, inside: Sequence[Passage]) -> tuple[list[Passage], int]:
        """(what other searches found beyond what was there, graded; how many searches)."""
        known = {_place(passage) for passage in inside}
        found: list[Passage] = []
        query = question
        for number in range(1, self.config.rounds + 1):
            if self._rewrite is not None:
                query = (self._rewrite(query) or "").strip() or query
            width = math.ceil(max(1, len(inside)) * self.config.widen**number)
            new = [passage for passage in self._search(query, width) if _place(passage) not in known]
            known |= {_place(passage) for passage in new}
            graded = self._graded(question, new)
            found += graded
            if any(passage.score >= self.config.upper for passage in graded):
                return found, number
        return found, self.config.rounds

    def _context(self, question: str, used: Sequence[Passage]) -> list[Passage]:
        """The passages that are used, refined as far as the context reaches."""
        taken: list[Passage] = []
        sources = 0
        for first in range(0, len(used), self._top_k):
            for parts in self._refined(question, used[first : first + self._top_k]):
                if parts and (self._budget is not None or sources < self._top_k):
                    taken += parts
                    sources += 1
            if self._full(taken, sources):
                break
        if not taken:
            return cut(used, self._top_k, self._budget)
        return taken if self._budget is None else cut(taken, budget=self._budget)

    def _full(self, taken: Sequence[Passage], sources: int) -> bool:
        if self._budget is None:
            return sources >= self._top_k
        return _length(cut(taken, budget=self._budget)) < _length(taken)

    def _refined(self, question: str, passages: Sequence[Passage]) -> list[list[Passage]]:
        """What is kept of each passage: its good strips, neighbours joined; all strips are graded at once."""
        if not self.config.refine:
            return [[passage] if self._good(passage.score) else [] for passage in passages]
        split = [[passage] if math.isnan(passage.score) else strips(passage) for passage in passages]
        asked = [strip for parts in split for strip in parts if len(parts) > 1]
        grades = iter(self._graded(question, asked))
        graded = [[next(grades) for _ in parts] if len(parts) > 1 else parts for parts in split]
        return [recomposed([self._good(strip.score) for strip in parts], parts) for parts in graded]

    def _good(self, grade: float) -> bool:
        """Whether a grade is no reason to leave its text out: it reaches `lower`, or there is none."""
        return math.isnan(grade) or grade >= self.config.lower


def action_of(grades: Sequence[float], upper: float, lower: float) -> Action:
    """What the grades of a search ask for; NaN is no grade. Nothing found at all is incorrect."""
    known = [grade for grade in grades if not math.isnan(grade)]
    if grades and not known:
        return "ungraded"
    if any(grade >= upper for grade in known):
        return "correct"
    return "ambiguous" if any(grade >= lower for grade in known) else "incorrect"


def by_grade(passages: Sequence[Passage]) -> list[Passage]:
    """Best grade first, equals as they stand, those without a grade last."""
    return sorted(passages, key=lambda passage: math.inf if math.isnan(passage.score) else -passage.score)


def strips(passage: Passage) -> list[Passage]:
    """A passage decomposed into strips of two sentences, which tile it; one of two sentences or fewer is its own strip."""
    ranges = sentences(passage.text)
    edges = [*(start for start, _ in ranges[::STRIP]), len(passage.text)]
    if len(edges) < 3:
        return [passage]
    return [_part(passage, start, end) for start, end in pairwise(edges)]


def recomposed(kept: Sequence[bool], parts: Sequence[Passage]) -> list[Passage]:
    """The strips that are kept, in the document's order; neighbours are one passage with the better grade of both."""
    found: list[Passage] = []
    for keep, strip in zip(kept, parts, strict=True):
        if not keep or not strip.text.strip():
            continue
        if found and found[-1].end == strip.start:
            last = found.pop()
            strip = replace(strip, start=last.start, text=last.text + strip.text, score=max(last.score, strip.score))
        found.append(strip)
    return found


def _part(passage: Passage, start: int, end: int) -> Passage:
    return replace(passage, start=passage.start + start, end=passage.start + end, text=passage.text[start:end])


def _place(passage: Passage) -> tuple[str, int, int]:
    return passage.document, passage.start, passage.end


def _length(passages: Sequence[Passage]) -> int:
    return sum(len(passage.text) for passage in passages)
