"""A row's keys and values as an `Example`: what each `type` needs, and the hashes that rows are known by."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evaluators.base import Example, Messages
from pipelines.config import DataFile
from pipelines.data.base import BadRow


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and the 64-bit hashes it is known by.

    Attributes:
        prompt: the text or the messages before the answer; None for plain text.
        completion: the answer, or the whole text.
        prompt_hash: of the prompt with blanks squeezed; of the text, for plain text.
        group: of `group_by`'s value, else the prompt's.
        content: of prompt and completion, and of what follows.
        rejected: the worse answer of a pair.
        label: whether the completion is a good one, of an unpaired preference.
    """

    prompt: str | Messages | None
    completion: str
    prompt_hash: int
    group: int
    content: int
    rejected: str | None = None
    label: bool | None = None

    def example(self, repeat: int) -> Example:
        """As pipelines see it; `repeat` counts equal rows of a data set from 1."""
        name, group = row_id(self.content, repeat), f"{self.group:016x}"
        return Example(name, group, self.prompt, self.completion, self.rejected, self.label)


def row_id(content: int, repeat: int) -> str:
    """An example's id: the hash of its content, numbered from the second equal row on."""
    return f"{content:016x}" if repeat == 1 else f"{content:016x}-{repeat}"


def build_row(values: Mapping[str, Any], data: DataFile) -> Row:
    """A row from a record.

    Raises:
        BadRow: if it is not what `data.type` says.
    """
    prompt, completion, *more = _BUILDERS[data.type](values, data)
    prompt_hash = _hash(_squeezed(prompt if prompt is not None else completion))
    group = (
        prompt_hash
        if data.group_by is None
        else _hash(_group(_value(values, data.group_by, "group_by"), data.group_by))
    )
    content = _hash(json.dumps([prompt, completion, *more], sort_keys=True, ensure_ascii=False))
    rejected = more[0] if data.type == "preference" else None
    label = more[0] if data.type == "unpaired_preference" else None
    return Row(prompt, completion, prompt_hash, group, content, rejected, label)


def needed_columns(data: DataFile) -> dict[str, str]:
    """Key of a row -> the setting that names it, of all that a row must have."""
    settings = {
        "chat": ("field_messages",),
        "prompt_completion": ("field_prompt", "field_completion"),
        "text": ("field_text",),
        "preference": ("field_chosen", "field_rejected"),
        "unpaired_preference": ("field_prompt", "field_completion", "field_label"),
    }[data.type]
    needed = {getattr(data, setting): setting for setting in settings}
    if data.group_by is not None:
        needed.setdefault(data.group_by, "group_by")
    return needed


def optional_columns(data: DataFile) -> tuple[str, ...]:
    """Keys that are read where a row has them: chats hold the prompt of a pair themselves."""
    return (data.field_prompt,) if data.type == "preference" else ()


def lacking(key: str, setting: str, there: Mapping[str, Any] | tuple[str, ...], noun: str) -> str:
    """What is wrong where a key or column is not there."""
    close = difflib.get_close_matches(key, there, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    names = sorted(there)
    listed = ", ".join(names[:30]) + (f", ... {len(names)} in all" if len(names) > 30 else "")
    return f"has no {noun} {key!r}{hint} ({noun}s: {listed or 'none'}; `{setting}` names the {noun})"


Built = tuple[Any, ...]
"""Prompt and completion; of a preference also the rejected answer, or the label."""


def _chat(values: Mapping[str, Any], data: DataFile) -> Built:
    key = data.field_messages
    messages = _as_messages(_value(values, key, "field_messages"))
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{key!r} must be a list of messages, but is {_short(messages)}")
    clean = tuple(_message(message, place) for place, message in enumerate(messages))
    if len(clean) < 2 or clean[-1]["role"] != "assistant":
        raise BadRow(f"{key!r} must end with an assistant message after at least one other")
    if not clean[-1]["content"].strip():
        raise BadRow("the last assistant message is empty")
    return clean[:-1], clean[-1]["content"]


def _as_messages(value: Any) -> Any:
    """A list, also where it is JSON text (CSV) or columns of a struct (older data sets)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"its messages are not JSON ({error})") from None
    if isinstance(value, Mapping) and isinstance(roles := value.get("role"), list):
        contents = value.get("content")
        if isinstance(contents, list) and len(contents) == len(roles):
            return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return value


def _message(message: Any, place: int) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRow(f"message {place} must be an object with 'role' and 'content', but is {_short(message)}")
    if not isinstance(message.get("content"), str):
        raise BadRow(f"message {place}: 'content' must be text, but is {_short(message.get('content'))}")
    if message.get("tool_calls"):
        raise BadRow(f"message {place}: 'tool_calls' are not supported; write the call into 'content'")
    _sound(message["role"])
    _sound(message["content"])
    return {"role": message["role"], "content": message["content"]}


def _prompt_completion(values: Mapping[str, Any], data: DataFile) -> Built:
    prompt = _text_of(values, data.field_prompt, "field_prompt")
    return prompt, _text_of(values, data.field_completion, "field_completion")


def _text(values: Mapping[str, Any], data: DataFile) -> Built:
    return None, _text_of(values, data.field_text, "field_text")


def _preference(values: Mapping[str, Any], data: DataFile) -> Built:
    names = data.field_chosen, data.field_rejected
    chosen = _chat_or_text(_value(values, names[0], "field_chosen"))
    rejected = _chat_or_text(_value(values, names[1], "field_rejected"))
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise BadRow(f"{names[0]!r} and {names[1]!r} must both be texts, or both lists of messages")
    prompt: str | Messages
    if isinstance(chosen, list):
        prompt, better, worse = _chat_pair(_chat_or_text(values.get(data.field_prompt)), chosen, rejected, names)
    else:
        prompt = _prompt(values, data)
        better = _text_of(values, names[0], "field_chosen")
        worse = _text_of(values, names[1], "field_rejected")
    if better == worse:
        raise BadRow(f"{names[0]!r} and {names[1]!r} are the same")
    return prompt, better, worse


def _chat_pair(
    prompt: Any, chosen: list[Any], rejected: list[Any], names: tuple[str, str]
) -> tuple[Messages, str, str]:
    """Messages before the answers, and the two answers; without a prompt of its own it is the chats' common beginning."""
    better, worse = ([_message(message, place) for place, message in enumerate(chat)] for chat in (chosen, rejected))
    if better == worse:
        raise BadRow(f"{names[0]!r} and {names[1]!r} are the same")
    if isinstance(prompt, list):
        before = [_message(message, place) for place, message in enumerate(prompt)]
        better, worse = (chat[len(before) :] if chat[: len(before)] == before else chat for chat in (better, worse))
    elif isinstance(prompt, str) and len(better) == len(worse) == 1:
        before = [{"role": "user", "content": prompt}]
    else:
        shared = next((i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), 0)
        before, better, worse = better[:shared], better[shared:], worse[shared:]
    answers = better + worse
    if not before or len(better) != 1 or len(worse) != 1 or any(one["role"] != "assistant" for one in answers):
        raise BadRow(
            f"{names[0]!r} and {names[1]!r} must be the same chat but for their last message, which is the assistant's"
        )
    if not all(one["content"].strip() for one in answers):
        raise BadRow("an assistant message that is compared is empty")
    return tuple(before), answers[0]["content"], answers[1]["content"]


def _unpaired(values: Mapping[str, Any], data: DataFile) -> Built:
    prompt, key = _prompt(values, data), data.field_completion
    answer = _chat_or_text(_value(values, key, "field_completion"))
    if isinstance(answer, list):
        if len(answer) != 1:
            raise BadRow(f"{key!r} must be a text, or a list of one assistant message, but is {_short(answer)}")
        answer = _message(answer[0], 0)["content"]
        prompt = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    if not isinstance(answer, str) or not answer.strip():
        raise BadRow(f"{key!r} must be text with something in it, but is {_short(answer)}")
    _sound(answer)
    label = _value(values, data.field_label, "field_label")
    known = _LABELS.get(str(label).strip().lower()) if isinstance(label, bool | int | str) else None
    if known is None:
        raise BadRow(f"{data.field_label!r} must be true or false, but is {_short(label)}")
    return prompt, answer, known


_LABELS = {"true": True, "1": True, "false": False, "0": False}


def _prompt(values: Mapping[str, Any], data: DataFile) -> str | Messages:
    """A preference's own prompt: a text, or messages."""
    key = data.field_prompt
    value = _chat_or_text(_value(values, key, "field_prompt"))
    if not isinstance(value, list):
        return _text_of(values, key, "field_prompt")
    if not value:
        raise BadRow(f"{key!r} is an empty list of messages")
    return tuple(_message(message, place) for place, message in enumerate(value))


def _chat_or_text(value: Any) -> Any:
    """Messages where it is a list of them, in whatever form (JSON text in a CSV); else the value itself."""
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return value
    try:
        found = _as_messages(value)
    except BadRow:
        return value
    held = isinstance(found, list) and all(isinstance(message, dict) and "role" in message for message in found)
    return found if held or not isinstance(value, str) else value


_BUILDERS: dict[str, Callable[[Mapping[str, Any], DataFile], Built]] = {
    "chat": _chat,
    "prompt_completion": _prompt_completion,
    "text": _text,
    "preference": _preference,
    "unpaired_preference": _unpaired,
}


def _value(values: Mapping[str, Any], key: str, setting: str) -> Any:
    if key not in values:
        raise BadRow(lacking(key, setting, values, "key"))
    return values[key]


def _text_of(values: Mapping[str, Any], key: str, setting: str) -> str:
    value = _value(values, key, setting)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{key!r} must be text with something in it, but is {_short(value)}")
    _sound(value)
    return value


def _group(value: Any, key: str) -> str:
    """A group's value as text, the same for a number and for its digits, so that a CSV groups as its JSONL does."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:
        raise BadRow(f"{key!r} must tell the row's group (`group_by`), but is {_short(value)}")
    if isinstance(value, str):
        _sound(value)
        return value
    return json.dumps(value, sort_keys=True, default=str)


def _sound(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow("its text holds half of a surrogate pair (\\ud800 to \\udfff)") from None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _squeezed(prompt: str | Messages) -> str:
    """The prompt with blanks squeezed, so that a trailing newline makes no new prompt."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    return json.dumps([[m["role"], " ".join(m["content"].split())] for m in prompt], ensure_ascii=False)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
