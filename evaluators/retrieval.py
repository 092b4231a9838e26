"""What was retrieved against gold: over characters of gold spans, and over gold documents. Needs no judge.

Everything is counted in characters or documents of the corpus, never in chunks, so that configurations which cut the
corpus differently are scored on one scale, and the best possible list is the same for all of them.

Spans, with G the gold characters (spans that overlap count once) and C those of them that lie in a passage:

- `span_recall` C / G; `span_precision` C / characters retrieved; `span_iou` C / characters in gold or retrieved. A
  character that several passages hold counts once (Chroma's chunking evaluation, whose recall this is, counts it in the
  denominators as often as it was retrieved).
- A passage is *relevant* when it holds at least half of a gold span, or at least half of it is gold. `span_mrr` is
  1 / the rank of the first relevant passage.
- A gold span is *found* at the first rank at which the passages so far hold at least half of it. `span_map` is the mean
  over gold spans of the share of relevant passages among those up to that rank, 0 for a span that is never found: average
  precision whose relevant items are the spans.
- `span_ndcg` is graded by new gold: with g_i the gold characters of passage i that no passage before it holds, DCG =
  sum g_i / log2(i + 1). The ideal list holds all gold of one document in one passage, the largest first. No list of any
  chunking exceeds it.

Documents, where a list counts each document once, at its first passage: `document_recall`, `_precision`, `_mrr`, `_map`
and `_ndcg` as in trec_eval, relevance 0 or 1, over the whole list as it was cut: average precision and the ideal DCG count
all gold documents.

Nothing retrieved scores 0; a question without gold of a kind is NaN there.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace

from evaluators.answers import Answered, Passage, Question, Tools
from evaluators.base import Direction, ItemSet, Score, Split, summarise
from evaluators.config import RetrievalConfig

Range = tuple[int, int]
_SPANS = tuple(name for name in RetrievalConfig.metrics if name.startswith("span_"))
_DOCUMENTS = tuple(name for name in RetrievalConfig.metrics if name.startswith("document_"))


class RetrievalEvaluator:
    """Implements `evaluators.answers.AnswerEvaluator` for `type: retrieval`.

    Without `.at_` a metric is over the context, what the generator is given; `.at_5` is over the first 5 passages of the
    ranked list, `.at_4000_characters` over its first 4,000 characters, the passage that would pass them cut.
    """

    metrics: Mapping[str, Direction]

    def __init__(self, config: RetrievalConfig) -> None:
        self.config = config
        self.metrics = config.reports()

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """See `AnswerEvaluator`."""
        rows = [self._judge(one) for one in answered]
        questions = [one.question for one in answered]
        item_set = ItemSet(
            tuple(question.id for question in questions), groups=tuple(question.group for question in questions)
        )
        return tuple(
            summarise(name, split, direction, item_set, [row[name] for row in rows])
            for name, direction in self.metrics.items()
        )

    def _judge(self, one: Answered) -> dict[str, float]:
        lists = {"": one.context}
        lists |= {f".at_{k}": one.ranked[:k] for k in self.config.k}
        lists |= {f".at_{n}_characters": first_characters(one.ranked, n) for n in self.config.characters}
        spans = _judge_beginnings(one.question, one.ranked, list(lists.values()))
        found: dict[str, float] = {}
        for (cut, passages), values in zip(lists.items(), spans, strict=True):
            documents = judge_documents(one.question.documents, [passage.document for passage in passages])
            found |= {
                name + cut: value for name, value in zip((*_SPANS, *_DOCUMENTS), (*values, *documents), strict=True)
            }
        return found


def first_characters(ranked: Sequence[Passage], n: int) -> tuple[Passage, ...]:
    """Whole passages in order while they fit into n characters, then the beginning of the next.

    Every passage counts as long as it is: what two of them share is read twice by whoever reads the list.
    """
    taken: list[Passage] = []
    for passage in ranked:
        length = passage.end - passage.start
        if length > n:
            if n:
                taken.append(replace(passage, end=passage.start + n, text=passage.text[:n]))
            break
        taken.append(passage)
        n -= length
    return tuple(taken)


def judge_spans(question: Question, passages: Sequence[Passage]) -> tuple[float, ...]:
    """(recall, precision, IoU, MRR, nDCG, MAP) over the characters of the question's spans; NaN where it has none."""
    return _judge_beginnings(question, passages, [passages])[0]


def _judge_beginnings(
    question: Question, ranked: Sequence[Passage], lists: Sequence[Sequence[Passage]]
) -> list[tuple[float, ...]]:
    """`judge_spans` of several lists; what they begin with of the ranked list is walked once for all of them."""
    if not question.spans:
        return [(math.nan,) * len(_SPANS) for _ in lists]
    shared = [_shared_beginning(ranked, passages) for passages in lists]
    found: list[tuple[float, ...]] = [()] * len(lists)
    walk = _Walk(question)
    for length in range(max(shared, default=0) + 1):
        for number in (i for i, own in enumerate(shared) if own == length):
            branch = walk.copy() if length < len(lists[number]) else walk
            for passage in lists[number][length:]:
                branch.take(passage)
            found[number] = branch.scores()
        if length < len(ranked):
            walk.take(ranked[length])
    return found


def _shared_beginning(ranked: Sequence[Passage], passages: Sequence[Passage]) -> int:
    """How many passages of a list are those that the ranked list begins with."""
    return next(
        (i for i, (a, b) in enumerate(zip(ranked, passages, strict=False)) if a is not b),
        min(len(ranked), len(passages)),
    )


def judge_documents(gold: Sequence[str], retrieved: Sequence[str]) -> tuple[float, ...]:
    """(recall, precision, MRR, nDCG, MAP) of a list of documents; a document that stands several times counts at its first place."""
    wanted = set(gold)
    if not wanted:
        return (math.nan,) * len(_DOCUMENTS)
    found, precisions, gain = 0, 0.0, 0.0
    first = 0
    listed = list(dict.fromkeys(retrieved))
    for rank, document in enumerate(listed, 1):
        if document in wanted:
            found += 1
            first = first or rank
            precisions += found / rank
            gain += 1 / math.log2(rank + 1)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, len(wanted) + 1))
    precision = found / len(listed) if listed else 0.0
    reciprocal = 1 / first if first else 0.0
    return found / len(wanted), precision, reciprocal, gain / ideal, precisions / len(wanted)


class _Walk:
    """One question's gold, and what the passages taken so far hold of it."""

    def __init__(self, question: Question) -> None:
        self._gold: dict[str, list[Range]] = {}
        for span in sorted(question.spans, key=lambda span: span.start):
            _join(self._gold.setdefault(span.document, []), (span.start, span.end))
        self._spans = [
            (document, start, end) for document, start, end in {(s.document, s.start, s.end) for s in question.spans}
        ]
        self._held = [0] * len(self._spans)
        self._seen: dict[str, list[Range]] = {}
        self._rank = self._relevant = self._first = 0
        self._covered = self._retrieved = 0
        self._gain = self._precisions = 0.0

    def copy(self) -> _Walk:
        """One that can go on otherwise."""
        made = copy(self)
        made._held = list(self._held)
        made._seen = {document: list(ranges) for document, ranges in self._seen.items()}
        return made

    def take(self, passage: Passage) -> None:
        """Count the next passage of the list."""
        self._rank += 1
        document, start, end = passage.document, passage.start, passage.end
        seen = self._seen.setdefault(document, [])
        new = _without((start, end), seen)
        self._retrieved += sum(stop - begin for begin, stop in new)
        gold = self._gold.get(document)
        if gold is None:
            _insert(seen, (start, end))
            return
        fresh = sum(_shared(part, gold) for part in new)
        self._covered += fresh
        self._gain += fresh / math.log2(self._rank + 1)
        if self._is_relevant(document, start, end, gold):
            self._relevant += 1
            self._first = self._first or self._rank
        for number, (where, begin, stop) in enumerate(self._spans):
            if where != document:
                continue
            before = self._held[number]
            self._held[number] += sum(_shared(part, [(begin, stop)]) for part in new)
            if 2 * before < stop - begin <= 2 * self._held[number]:
                self._precisions += self._relevant / self._rank
        _insert(seen, (start, end))

    def _is_relevant(self, document: str, start: int, end: int, gold: list[Range]) -> bool:
        if 0 < end - start <= 2 * _shared((start, end), gold):
            return True
        return any(
            2 * (min(end, stop) - max(start, begin)) >= stop - begin
            for where, begin, stop in self._spans
            if where == document
        )

    def scores(self) -> tuple[float, ...]:
        """(recall, precision, IoU, MRR, nDCG, MAP) of what was taken."""
        sizes = sorted((sum(end - start for start, end in gold) for gold in self._gold.values()), reverse=True)
        total = sum(sizes)
        ideal = sum(size / math.log2(rank + 1) for rank, size in enumerate(sizes, 1))
        return (
            self._covered / total,
            self._covered / self._retrieved if self._retrieved else 0.0,
            self._covered / (total + self._retrieved - self._covered),
            1 / self._first if self._first else 0.0,
            self._gain / ideal,
            self._precisions / len(self._spans),
        )


def _join(ranges: list[Range], new: Range) -> None:
    """Add a range that begins after the others to sorted, disjoint ones."""
    if ranges and new[0] <= ranges[-1][1]:
        ranges[-1] = (ranges[-1][0], max(ranges[-1][1], new[1]))
    else:
        ranges.append(new)


def _insert(ranges: list[Range], new: Range) -> None:
    """Add a range to sorted, disjoint ones, in place."""
    start, end = new
    first = last = bisect_left(ranges, (start, start))
    if first and ranges[first - 1][1] >= start:
        first -= 1
        start = ranges[first][0]
    while last < len(ranges) and ranges[last][0] <= end:
        last += 1
    if last > first:
        end = max(end, ranges[last - 1][1])
    ranges[first:last] = [(start, end)]


def _without(new: Range, ranges: list[Range]) -> list[Range]:
    """The parts of a range that lie in none of the sorted, disjoint ones."""
    start, end = new
    parts = []
    for begin, stop in ranges:
        if stop <= start or begin >= end:
            continue
        if begin > start:
            parts.append((start, begin))
        start = stop
    if start < end:
        parts.append((start, end))
    return parts


def _shared(one: Range, ranges: list[Range]) -> int:
    """Characters of a range that lie in sorted, disjoint ones."""
    return sum(max(0, min(one[1], stop) - max(one[0], begin)) for begin, stop in ranges)
