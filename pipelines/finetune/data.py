"""Rows as tokens: what is fed and what is trained on. No torch.

Type `text` trains on every token, `prompt_completion` on the completion and the end-of-text token, `chat` on what the
assistant says, in all its turns where the chat template renders a conversation's beginning as the beginning of the
conversation (else, where it drops earlier thoughts for example, in the last turn). The tokens are those that TRL's SFTTrainer would make.

Example:
    >>> encode(example, tokenizer, sequence_len=64).labels[:4]
    [-100, -100, -100, 504]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from evaluators.base import Example, Messages
from pipelines.stage import UserError

IGNORED = -100
"""The label of a token that is not trained on."""


@dataclass(frozen=True)
class Encoded:
    """A row as tokens.

    Attributes:
        ids: token ids, at most `sequence_len`.
        labels: the same ids where the token is trained on, else `IGNORED`.
        cut: whether the row was longer.
    """

    ids: list[int]
    labels: list[int]
    cut: bool

    @property
    def trained(self) -> int:
        """Tokens that count in the loss; nothing predicts the first one."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode(example: Example, tokenizer: Any, sequence_len: int) -> Encoded:
    """Tokens and labels of one row, cut at the end.

    Raises:
        UserError: if the row is a chat and the tokenizer has no chat template.
    """
    if example.prompt is None:
        ids = tokenize(tokenizer, _ended(example.completion, tokenizer))
        labels = list(ids)
    elif isinstance(example.prompt, str):
        ids = tokenize(tokenizer, _ended(example.prompt + example.completion, tokenizer))
        start = _shared(tokenize(tokenizer, example.prompt), ids)
        labels = [IGNORED] * start + ids[start:]
    else:
        ids, labels = _chat(example.prompt, example.completion, tokenizer)
    return Encoded(ids[:sequence_len], labels[:sequence_len], len(ids) > sequence_len)


def encode_answer(prompt: str | Messages | None, answer: str, tokenizer: Any, sequence_len: int) -> Encoded:
    """As `encode`, but of a chat the last answer alone counts: what the assistant said before belongs to the prompt.

    Raises:
        UserError: as `encode`.
    """
    if prompt is None or isinstance(prompt, str):
        return encode(Example("", "", prompt, answer), tokenizer, sequence_len)
    ids, start = _last_turn(prompt, answer, tokenizer)
    labels = [IGNORED] * start + ids[start:]
    return Encoded(ids[:sequence_len], labels[:sequence_len], len(ids) > sequence_len)


def encode_prompt(prompt: str | Messages, tokenizer: Any) -> list[int]:
    """Tokens that an answer follows: the text, or the chat with the assistant's turn opened."""
    if isinstance(prompt, str):
        return tokenize(tokenizer, prompt)
    return _render(list(prompt), tokenizer, opened=True)


def chat_text(messages: Messages, tokenizer: Any, *, opened: bool) -> str:
    """A chat as text, the assistant's turn opened or its last turn left open; `tokenize` gives it its beginning once.

    Raises:
        UserError: if the tokenizer has no chat template, or it refuses the chat.
    """
    _check_template(tokenizer)
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=opened,
            continue_final_message=not opened,
        )
    except TemplateError as error:
        raise _refused(messages, error) from error
    ids, begin = tokenize(tokenizer, text), tokenizer.bos_token_id
    return text.removeprefix(tokenizer.bos_token) if begin is not None and ids[:2] == [begin, begin] else text


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, with whatever the tokenizer puts before and after it."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def _chat(prompt: Messages, answer: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    messages = _with_answer(prompt, answer)
    ids, start = _last_turn(prompt, answer, tokenizer)
    labels = [IGNORED] * start + ids[start:]
    for turn, message in enumerate(messages[:-1]):
        if message["role"] == "assistant" and turn:
            before = _render(messages[:turn], tokenizer, opened=True)
            after = _render(messages[: turn + 1], tokenizer, opened=False)
            if _shared(before, ids) < len(before) or _shared(after, ids) < len(after):
                return ids, [IGNORED] * start + ids[start:]
            labels[len(before) : len(after)] = ids[len(before) : len(after)]
    return ids, labels


def _last_turn(prompt: Messages, answer: str, tokenizer: Any) -> tuple[list[int], int]:
    """A whole chat, and where its answer begins."""
    messages = _with_answer(prompt, answer)
    ids = _render(messages, tokenizer, opened=False)
    return ids, _shared(_render(messages[:-1], tokenizer, opened=True), ids)


def _with_answer(prompt: Messages, answer: str) -> list[dict[str, str]]:
    return [dict(message) for message in prompt] + [{"role": "assistant", "content": answer}]


def _render(messages: list[dict[str, str]] | list[Any], tokenizer: Any, *, opened: bool) -> list[int]:
    _check_template(tokenizer)
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=opened, tokenize=True, return_dict=True
        )["input_ids"]
    except TemplateError as error:
        raise _refused(messages, error) from error
    return ids


def _check_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise UserError(
            "datasets: rows of type chat need a model whose tokenizer has a chat template; take an instruct model, or "
            "type prompt_completion"
        )


def _refused(messages: Sequence[Any], error: TemplateError) -> UserError:
    roles = ", ".join(message["role"] for message in messages)
    return UserError(f"datasets: the model's chat template refuses a chat with the roles {roles}: {error}")


def _ended(text: str, tokenizer: Any) -> str:
    end = tokenizer.eos_token
    return text if end is None or text.endswith(end) else text + end


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))
