"""What a judge is asked, and how its answers are read. The claim metrics (`evaluators.rag`) are made of these questions.

Every question is a module constant with its own input as JSON at the end, so equal questions make equal prompts and are
asked once: the statements of a text depend on the question and that text alone, a verdict on a passage on the question,
the reference and the passage. Raise `VERSION` when a prompt changes: it stands in `JudgeRequest.task` and in metric cards.

An answer is one JSON object, in whatever text stands around it. One that can't be read, says two things, or lacks a
verdict is None, and what depends on it is unscored; nothing is asked twice. What needs no judge is not asked: a blank text
makes no statements, nothing to support is no question, and no passage supports nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from evaluators.answers import Judge, JudgeRequest, Passage

VERSION = 1
"""Of the prompts."""

_ALONE = "Answer with one JSON object of the form that is asked for, and nothing else."

STATEMENTS = f"""Break an answer to a question down into statements. Each statement is one fact that the answer claims, in one short \
sentence that can be understood alone: no pronouns, names written out. Claim nothing that the answer does not claim. Where it \
claims nothing, the list is empty. {_ALONE}

Example input: {{"question": "Who was Ada Lovelace?", "answer": "She was an English mathematician, known for her notes on the \
Analytical Engine."}}
Example output: {{"statements": ["Ada Lovelace was English.", "Ada Lovelace was a mathematician.", "Ada Lovelace is known for \
notes on the Analytical Engine."]}}

Input: """

SUPPORTED = f"""Judge statements by a context. The verdict on a statement is 1 if it follows from the context alone, else 0. Give a \
verdict on every statement, by its number, with a reason of a few words before it. {_ALONE}

Example input: {{"context": "The bridge was opened in 1931 and is 504 m long.", "statements": {{"1": "The bridge was opened in \
1931.", "2": "The bridge is made of steel."}}}}
Example output: {{"verdicts": [{{"number": 1, "reason": "the context says so", "verdict": 1}}, {{"number": 2, "reason": \
"material is not mentioned", "verdict": 0}}]}}

Input: """

MATCHED = f"""Compare the statements of an answer with those of a reference answer to the same question. The verdict on a statement of \
the answer is 1 if the reference statements support it, else 0. The verdict on a statement of the reference is 1 if the \
answer's statements contain it, else 0. Give a verdict on every statement, by its number, with a reason of a few words before \
it. {_ALONE}

Example input: {{"question": "What gives the sun its energy?", "answer": {{"1": "The sun is powered by nuclear fission."}}, \
"reference": {{"1": "The sun is powered by nuclear fusion.", "2": "Fusion turns hydrogen into helium."}}}}
Example output: {{"answer": [{{"number": 1, "reason": "it is fusion", "verdict": 0}}], "reference": [{{"number": 1, "reason": \
"the answer says fission", "verdict": 0}}, {{"number": 2, "reason": "not in the answer", "verdict": 0}}]}}

Input: """

USEFUL = f"""Judge whether a passage is useful for arriving at the given answer to a question. The verdict is 1 if the passage holds \
something that the answer rests on, else 0, with a reason of a few words before it. {_ALONE}

Example input: {{"question": "When was the bridge opened?", "answer": "In 1931.", "passage": "Traffic has crossed the bridge \
since its opening in 1931."}}
Example output: {{"reason": "it gives the year", "verdict": 1}}

Input: """

ANSWERABLE = f"""Judge whether a question can be answered from a passage alone. The verdict is 1 if the passage holds the answer, else 0, with \
a reason of a few words before it. {_ALONE}

Example input: {{"question": "Who built the bridge?", "passage": "The bridge was opened in 1931."}}
Example output: {{"reason": "no builder is named", "verdict": 0}}

Input: """

QUESTIONS = f"""Write the questions that an answer could be the answer to, as different from each other as the answer allows, and as many \
as are asked for. Beside each, noncommittal is 1 if the answer evades it, is vague or says that it does not know, else 0. \
{_ALONE}

Example input: {{"answer": "Albert Einstein was born in Ulm.", "questions": 2}}
Example output: {{"questions": [{{"question": "Where was Albert Einstein born?", "noncommittal": 0}}, {{"question": "Which \
physicist was born in Ulm?", "noncommittal": 0}}]}}

Input: """

Statements = tuple[str, ...]
Verdicts = tuple[bool, ...]
Read = TypeVar("Read")


def statements_of(judge: Judge, texts: Sequence[tuple[str, str] | None]) -> list[Statements | None]:
    """Statements of (question, answer) pairs; None where the pair is None or the judge's answer can't be read."""

    def request(question: str, text: str) -> JudgeRequest:
        return _request("statements", STATEMENTS, {"question": question, "answer": text}, 256 + len(text) // 2)

    requests = [None if one is None or not one[1].strip() else request(*one) for one in texts]
    found = _ask(judge, requests, [_read_statements] * len(requests))
    return [() if one is not None and not one[1].strip() else read for one, read in zip(texts, found, strict=True)]


def supported(judge: Judge, asked: Sequence[tuple[Sequence[Passage], Statements] | None]) -> list[Verdicts | None]:
    """Whether passages together support each of some statements; None where nothing is asked or can't be read."""
    requests: list[JudgeRequest | None] = []
    for one in asked:
        if one is None or not one[0] or not one[1]:
            requests.append(None)
            continue
        context = "\n".join(passage.text for passage in one[0])
        content = {"context": context, "statements": _numbered(one[1])}
        requests.append(_request("supported", SUPPORTED, content, _room(len(one[1]))))
    readers = [_verdicts_reader(0 if one is None else len(one[1])) for one in asked]
    found = _ask(judge, requests, readers)
    return [
        (False,) * len(one[1]) if one is not None and not (one[0] and one[1]) else read
        for one, read in zip(asked, found, strict=True)
    ]


def matched(
    judge: Judge, asked: Sequence[tuple[str, Statements, Statements] | None]
) -> list[tuple[Verdicts, Verdicts] | None]:
    """For (question, statements of the answer, of the reference): which of either the other side has.

    Where one side has none, the other's are all unmatched and nothing is asked.
    """
    requests: list[JudgeRequest | None] = []
    readers: list[Callable[[str], tuple[Verdicts, Verdicts] | None]] = []
    for one in asked:
        request, sizes = None, (0, 0)
        if one is not None:
            question, answer, reference = one
            sizes = len(answer), len(reference)
            content = {"question": question, "answer": _numbered(answer), "reference": _numbered(reference)}
            request = _request("matched", MATCHED, content, _room(sum(sizes))) if all(sizes) else None
        requests.append(request)
        readers.append(_matches_reader(*sizes))
    found = _ask(judge, requests, readers)
    return [
        ((False,) * len(one[1]), (False,) * len(one[2])) if one is not None and not (one[1] and one[2]) else read
        for one, read in zip(asked, found, strict=True)
    ]


def useful(judge: Judge, asked: Sequence[tuple[str, str, Passage]]) -> list[bool | None]:
    """Whether a passage is useful for arriving at the answer, for each (question, answer, passage)."""
    requests = [
        _request("useful", USEFUL, {"question": question, "answer": answer, "passage": passage.text}, _room(1))
        for question, answer, passage in asked
    ]
    return _ask(judge, requests, [_read_verdict] * len(requests))


def answerable(judge: Judge, asked: Sequence[tuple[str, Sequence[Passage]]]) -> list[bool | None]:
    """Whether each question can be answered from its passages; what `evaluate-judge` measures judges by, no metric."""
    requests = [
        _request(
            "answerable",
            ANSWERABLE,
            {"question": question, "passage": "\n".join(passage.text for passage in passages)},
            _room(1),
        )
        for question, passages in asked
    ]
    return _ask(judge, requests, [_read_verdict] * len(requests))


def questions_for(
    judge: Judge, answers: Sequence[str | None], count: int
) -> list[tuple[tuple[str, ...], Verdicts] | None]:
    """`count` questions made from each answer alone, and whether the answer is noncommittal on each."""
    requests = [
        None
        if answer is None
        else _request("questions", QUESTIONS, {"answer": answer, "questions": count}, _room(count))
        for answer in answers
    ]
    return _ask(judge, requests, [_questions_reader(count)] * len(requests))


def _request(task: str, prompt: str, content: dict[str, Any], room: int) -> JudgeRequest:
    return JudgeRequest(f"{task}/{VERSION}", prompt + json.dumps(content, ensure_ascii=False), room)


def _room(verdicts: int) -> int:
    """Tokens for that many verdicts with their reasons."""
    return 64 + 64 * verdicts


def _numbered(statements: Statements) -> dict[str, str]:
    return {str(number): statement for number, statement in enumerate(statements, 1)}


def _ask(
    judge: Judge, requests: Sequence[JudgeRequest | None], readers: Sequence[Callable[[str], Read | None]]
) -> list[Read | None]:
    """What the judge says to all of them at once, read; None where nothing was asked, said or can be read."""
    real = [request for request in requests if request is not None]
    said = iter(judge.ask(real) if real else [])
    texts = [None if request is None else next(said) for request in requests]
    return [None if text is None else read(text) for text, read in zip(texts, readers, strict=True)]


def _read_statements(text: str) -> Statements | None:
    found = the_object(text, "statements")
    listed = None if found is None else found["statements"]
    if not isinstance(listed, list) or not all(isinstance(one, str) and one.strip() for one in listed):
        return None
    return tuple(one.strip() for one in listed)


def _read_verdict(text: str) -> bool | None:
    found = the_object(text, "verdict")
    return None if found is None else _verdict(found["verdict"])


def _verdicts_reader(count: int) -> Callable[[str], Verdicts | None]:
    def read(text: str) -> Verdicts | None:
        found = the_object(text, "verdicts")
        return None if found is None else _verdicts(found["verdicts"], count)

    return read


def _matches_reader(answer: int, reference: int) -> Callable[[str], tuple[Verdicts, Verdicts] | None]:
    def read(text: str) -> tuple[Verdicts, Verdicts] | None:
        found = the_object(text, "answer", "reference")
        if found is None:
            return None
        sides = _verdicts(found["answer"], answer), _verdicts(found["reference"], reference)
        return None if sides[0] is None or sides[1] is None else (sides[0], sides[1])

    return read


def _questions_reader(count: int) -> Callable[[str], tuple[tuple[str, ...], Verdicts] | None]:
    def read(text: str) -> tuple[tuple[str, ...], Verdicts] | None:
        found = the_object(text, "questions")
        listed = None if found is None else found["questions"]
        if not isinstance(listed, list) or len(listed) != count or not all(isinstance(one, dict) for one in listed):
            return None
        texts = [one.get("question") for one in listed]
        evasions = [_verdict(one.get("noncommittal")) for one in listed]
        if not all(isinstance(one, str) and one.strip() for one in texts) or any(one is None for one in evasions):
            return None
        return tuple(texts), tuple(bool(one) for one in evasions)

    return read


def _verdicts(listed: Any, count: int) -> Verdicts | None:
    """Verdicts by number, 1 to `count`, each exactly once, in any order."""
    if not isinstance(listed, list) or len(listed) != count or not all(isinstance(one, dict) for one in listed):
        return None
    by_number: dict[int, bool] = {}
    for one in listed:
        number, verdict = one.get("number"), _verdict(one.get("verdict"))
        if type(number) is not int or verdict is None:
            return None
        by_number[number] = verdict
    return tuple(by_number[n] for n in range(1, count + 1)) if set(by_number) == set(range(1, count + 1)) else None


def _verdict(value: Any) -> bool | None:
    """0, 1, false or true; no other number and no text."""
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


def the_object(text: str, *keys: str) -> dict[str, Any] | None:
    """The JSON object with these keys that stands in a text; None if there is none, or several that differ."""
    found = [one for one in _objects(text) if all(key in one for key in keys)]
    return found[0] if found and all(one == found[0] for one in found) else None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects of a text, in order."""
    decoder = json.JSONDecoder(parse_constant=_no_number)
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield value
        start = text.find("{", end)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
