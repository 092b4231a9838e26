"""The four splits of a dataset: JSONL rows, split by the hash of their prompt. No torch.

A row's split depends on its prompt (or `group_by`), the seed and the fractions alone: never on the file's order or on
other rows, so adding rows moves none. `tune` takes the hashes at the bottom, `select` those above it, `test` those at
the top, `train` what is between.

Example:
    >>> splits = load_splits(config.datasets, seed=config.seed_data)
    >>> len(splits.train), len(splits.tune)
    (450, 50)
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.base import Example, Messages
from pipelines.config import DataFile, Datasets, Fraction
from pipelines.stage import UserError

SMALL = 50
"""Splits with fewer prompts than this are warned about."""
_SHOWN = 5
_HELD_OUT = ("tune", "select", "test")


@dataclass(frozen=True)
class Splits:
    """Rows of every split; a split that the file does not name is empty.

    Attributes:
        train: in file order.
        tune: in hash order, so that the first n are a fixed random sample; so are `select` and `test`.
        warnings: sentences for the user.
    """

    train: list[Example]
    tune: list[Example]
    select: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    warnings: tuple[str, ...] = ()

    def rows(self, split: str) -> list[Example]:
        """The rows of a split by its name."""
        found: list[Example] = getattr(self, split)
        return found


@dataclass(frozen=True)
class _Row:
    line: int
    prompt_hash: str
    example: Example


_Stamp = tuple[str, int, int]
_FILES: dict[tuple[_Stamp, str], tuple[_Row, ...]] = {}
_SPLITS: dict[tuple[str, int, tuple[_Stamp, ...]], Splits] = {}
_KEPT = 8


def load_splits(datasets: Datasets, seed: int = 0) -> Splits:
    """Read and split; cached in the process by every file's place, time and size.

    Args:
        datasets: the `datasets` section, paths absolute.
        seed: `seed_data`; another one gives other splits.

    Raises:
        UserError: on an unreadable file, a bad row (file and line), an empty split, fractions that leave no train, or a
            prompt that stands in two files.
    """
    stamps = tuple(_stamp(f.path) for f in (datasets.train, *_files(datasets).values()))
    key = (datasets.model_dump_json(), seed, stamps)
    if key not in _SPLITS:
        _keep(_SPLITS, key, _split(datasets, seed))
    return _SPLITS[key]


def count_train(datasets: Datasets, seed: int = 0) -> int:
    """Rows of `train` after the fractions are taken out: what an epoch is made of.

    Raises:
        UserError: as `load_splits`.
    """
    return len(load_splits(datasets, seed).train)


def read_rows(data: DataFile) -> list[Example]:
    """Every row of one file, in hash order, as a split of its own.

    Raises:
        UserError: on an unreadable or empty file, or a bad row (file and line).
    """
    return sorted((row.example for row in _read(data)), key=lambda example: example.id)


def _split(datasets: Datasets, seed: int) -> Splits:
    files = {name: _read(data) for name, data in _files(datasets).items()}
    train, dropped = _without_duplicates(datasets, list(_read(datasets.train)), files)
    ranges = _ranges(datasets)
    parts: dict[str, list[_Row]] = {"train": [], **{name: list(rows) for name, rows in files.items()}}
    for row in train:
        place = _unit(seed, row.example.group)
        parts.setdefault(next((n for n, (low, high) in ranges.items() if low <= place < high), "train"), []).append(row)
    warnings = [f"{dropped} rows of train were dropped: their prompts stand in another split's file"] * bool(dropped)
    for name in ("train", *_HELD_OUT):
        named = name == "train" or getattr(datasets, name) is not None
        if named and not parts.get(name):
            raise UserError(_empty(name, datasets))
        if named and name != "train":
            warnings += _small(name, parts[name])
    held = {name: sorted((r.example for r in parts.get(name, ())), key=lambda e: e.id) for name in _HELD_OUT}
    return Splits([r.example for r in parts["train"]], **held, warnings=tuple(warnings))


def _files(datasets: Datasets) -> dict[str, DataFile]:
    found = {name: getattr(datasets, name) for name in _HELD_OUT}
    return {name: data for name, data in found.items() if isinstance(data, DataFile)}


def _ranges(datasets: Datasets) -> dict[str, tuple[float, float]]:
    share = datasets.fractions
    tune = share.get("tune", 0.0)
    ranges = {
        "tune": (0.0, tune),
        "select": (tune, tune + share.get("select", 0.0)),
        "test": (1 - share.get("test", 0.0), 1.0),
    }
    return {name: ranges[name] for name in share}


def _empty(name: str, datasets: Datasets) -> str:
    source = getattr(datasets, name)
    if isinstance(source, Fraction):
        return (
            f"datasets.{name} is empty: a fraction of {source.fraction} of the prompts of {datasets.train.path} holds none; "
            "raise the fraction or give it a file of its own"
        )
    return f"datasets.{name} is empty: {source.path} has no row left for it"


def _small(name: str, rows: Sequence[_Row]) -> list[str]:
    n = len({row.example.group for row in rows})
    if n >= SMALL:
        return []
    width = 1.96 * 0.5 / math.sqrt(n)
    return [
        f"{name} has {n} prompts: a share measured on them is known to ±{width:.2f} only (95 %), "
        "so smaller differences can't be shown"
    ]


def _without_duplicates(
    datasets: Datasets, train: list[_Row], files: dict[str, tuple[_Row, ...]]
) -> tuple[list[_Row], int]:
    """Rows of train whose prompt and group stand in no other file, and how many were dropped."""
    seen: dict[str, tuple[str, _Row]] = {}
    problems = []
    for name, rows in files.items():
        for row in rows:
            other = next((seen[k] for k in _keys(row) if k in seen and seen[k][0] != name), None)
            if other is not None:
                problems.append(_twice(datasets, name, row, *other))
            for key in _keys(row):
                seen.setdefault(key, (name, row))
    kept = []
    for row in train:
        other = next((seen[k] for k in _keys(row) if k in seen), None)
        if other is None:
            kept.append(row)
        elif datasets.on_duplicate == "error":
            problems.append(_twice(datasets, "train", row, *other) + "; `on_duplicate: drop_train` drops it from train")
    _raise(problems)
    return kept, len(train) - len(kept)


def _keys(row: _Row) -> tuple[str, str]:
    return ("p" + row.prompt_hash, "g" + row.example.group)


def _twice(datasets: Datasets, name: str, row: _Row, other_name: str, other: _Row) -> str:
    here, there = getattr(datasets, name).path, getattr(datasets, other_name).path
    what = "prompt" if row.prompt_hash == other.prompt_hash else "group"
    return f"{here}, line {row.line} ({name}): its {what} stands in {there}, line {other.line} ({other_name}) too"


def _read(data: DataFile) -> tuple[_Row, ...]:
    key = (_stamp(data.path), data.model_dump_json())
    if key not in _FILES:
        _keep(_FILES, key, tuple(_parse(data)))
    return _FILES[key]


def _keep(cache: dict[Any, Any], key: Any, value: Any) -> None:
    while len(cache) >= _KEPT:
        del cache[next(iter(cache))]
    cache[key] = value


def _stamp(path: str) -> _Stamp:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); `path` is relative to the sweep file") from None
    return (path, stat.st_mtime_ns, stat.st_size)


def _parse(data: DataFile) -> Iterator[_Row]:
    problems: list[str] = []
    rows: list[_Row] = []
    counts: dict[str, int] = {}
    build = _BUILDERS[data.type]
    for line, text in _lines(data):
        try:
            prompt, completion, group_text = build(_object(text), data)
        except _BadRow as error:
            problems.append(f"{data.path}, line {line}: {error}")
            continue
        prompt_hash = _hash(_squeezed(prompt if prompt is not None else completion))
        group = _hash(group_text) if group_text is not None else prompt_hash
        content = _hash(json.dumps([prompt, completion], sort_keys=True, ensure_ascii=False))
        counts[content] = counts.get(content, 0) + 1
        name = content if counts[content] == 1 else f"{content}-{counts[content]}"
        rows.append(_Row(line, prompt_hash, Example(name, group, prompt, completion)))
    _raise(problems)
    if not rows:
        raise UserError(f"{data.path}: has no rows; one JSON object a line is wanted")
    yield from rows


def _lines(data: DataFile) -> Iterator[tuple[int, str]]:
    """Numbered lines that hold something, at most `limit`; read as bytes so that a bad one can be named."""
    given = 0
    try:
        with Path(data.path).open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise UserError(f"{data.path}, line {number}: not UTF-8 text ({error.reason})") from None
                if text:
                    yield number, text
                    given += 1
                if data.limit is not None and given >= data.limit:
                    return
    except OSError as error:
        raise UserError(f"{data.path}: can't be read ({error.strerror})") from None


class _BadRow(ValueError):
    """A row that can't be used; the message says why, without its place."""


def _object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "; one JSON object a line is wanted, not an array over several lines" if text[0] in "[{" else ""
        raise _BadRow(f"not JSON ({error}){hint}") from None
    if not isinstance(row, dict):
        raise _BadRow(f"a {type(row).__name__}, but an object is wanted, such as " + '{"prompt": "...", ...}')
    return row


Built = tuple[str | Messages | None, str, str | None]


def _chat(row: dict[str, Any], data: DataFile) -> Built:
    messages = _value(row, data.field_messages, "field_messages")
    if not isinstance(messages, list) or not messages:
        raise _BadRow(f"{data.field_messages!r} must be a list of messages, but is {_short(messages)}")
    clean = tuple(_message(message, place) for place, message in enumerate(messages))
    if len(clean) < 2 or clean[-1]["role"] != "assistant":
        raise _BadRow(f"{data.field_messages!r} must end with an assistant message after at least one other")
    if not clean[-1]["content"].strip():
        raise _BadRow("the last assistant message is empty")
    return clean[:-1], clean[-1]["content"], _group(row, data)


def _message(message: Any, place: int) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _BadRow(f"message {place} must be an object with 'role' and 'content', but is {_short(message)}")
    if not isinstance(message.get("content"), str):
        raise _BadRow(f"message {place}: 'content' must be text, but is {_short(message.get('content'))}")
    if message.get("tool_calls"):
        raise _BadRow(f"message {place}: 'tool_calls' are not supported; write the call into 'content'")
    _sound(message["content"])
    return {"role": message["role"], "content": message["content"]}


def _prompt_completion(row: dict[str, Any], data: DataFile) -> Built:
    prompt = _text_of(row, data.field_prompt, "field_prompt")
    return prompt, _text_of(row, data.field_completion, "field_completion"), _group(row, data)


def _text(row: dict[str, Any], data: DataFile) -> Built:
    return None, _text_of(row, data.field_text, "field_text"), _group(row, data)


_BUILDERS: dict[str, Callable[[dict[str, Any], DataFile], Built]] = {
    "chat": _chat,
    "prompt_completion": _prompt_completion,
    "text": _text,
}


def _value(row: dict[str, Any], key: str, setting: str) -> Any:
    if key in row:
        return row[key]
    close = difflib.get_close_matches(key, row, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise _BadRow(f"has no key {key!r}{hint} (keys: {', '.join(sorted(row)) or 'none'}; `{setting}` names the key)")


def _text_of(row: dict[str, Any], key: str, setting: str) -> str:
    value = _value(row, key, setting)
    if not isinstance(value, str) or not value.strip():
        raise _BadRow(f"{key!r} must be text with something in it, but is {_short(value)}")
    _sound(value)
    return value


def _group(row: dict[str, Any], data: DataFile) -> str | None:
    if data.group_by is None:
        return None
    return json.dumps(_value(row, data.group_by, "group_by"), sort_keys=True)


def _sound(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _BadRow("its text holds half of a surrogate pair (\\ud800 to \\udfff)") from None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."


def _squeezed(prompt: str | Messages) -> str:
    """The prompt with blanks squeezed, so that a trailing newline makes no new prompt."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    return json.dumps([[m["role"], " ".join(m["content"].split())] for m in prompt], ensure_ascii=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unit(seed: int, group: str) -> float:
    """A number in [0, 1) from the seed and the group."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _raise(problems: list[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more like these"] * (len(problems) > _SHOWN)
        raise UserError("\n".join(problems[:_SHOWN] + more))
