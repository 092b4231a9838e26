"""Tokens and labels: what is trained on, against TRL's own preparation."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import CHATML, tokenizer

from evaluators.base import Example
from pipelines.finetune.data import IGNORED, encode, encode_prompt
from pipelines.finetune.rows import encode_train
from pipelines.stage import UserError

THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def example(prompt: Any, completion: str) -> Example:
    return Example("id", "group", prompt, completion)


def chat(*contents: str) -> tuple[dict[str, str], ...]:
    return tuple({"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents))


def trained_text(row: Any, tokens: Any) -> str:
    return str(tokens.decode([label for label in row.labels if label != IGNORED]))


def test_text_trains_on_everything_and_its_end() -> None:
    tokens = tokenizer()
    row = encode(example(None, "abc"), tokens, 64)
    assert row.labels == row.ids
    assert row.ids[-1] == tokens.eos_token_id
    assert row.trained == 3
    assert not row.cut


def test_a_completion_is_trained_on_without_its_prompt() -> None:
    tokens = tokenizer()
    row = encode(example("2+2=", "4"), tokens, 64)
    assert trained_text(row, tokens) == "4<|im_end|>"
    assert row.trained == 2


def test_an_end_that_is_there_is_not_doubled() -> None:
    tokens = tokenizer()
    assert encode(example("a", "b<|im_end|>"), tokens, 64) == encode(example("a", "b"), tokens, 64)


def test_a_chat_trains_on_every_turn_of_the_assistant() -> None:
    tokens = tokenizer()
    row = encode(example(chat("hi", "yo", "and?"), "so"), tokens, 256)
    assert trained_text(row, tokens) == "yo<|im_end|>\nso<|im_end|>\n"


def test_a_template_that_rewrites_the_past_trains_on_the_last_turn() -> None:
    tokens = tokenizer(THINKING)
    row = encode(example(chat("hi", "<think>hm</think>yo", "and?"), "so"), tokens, 256)
    assert trained_text(row, tokens) == "so<|im_end|>\n"


def test_long_rows_are_cut_at_the_end_and_counted() -> None:
    tokens = tokenizer()
    rows = [example("a" * 4, "b" * 4), example("a" * 20, "b"), example("a", "b")]
    found = encode_train(rows, tokens, 8)
    assert (found.cut, found.dropped, len(found.rows)) == (2, 1, 2)
    assert trained_text(found.rows[0], tokens) == "bbbb"
    assert all(len(row.ids) <= 8 for row in found.rows)


def test_nothing_left_to_train_on_is_the_users_error() -> None:
    with pytest.raises(UserError, match="sequence_len: 8 tokens leave nothing to train on in any of the 1 rows"):
        encode_train([example("a" * 20, "b")], tokenizer(), 8)


def test_a_chat_needs_a_template() -> None:
    with pytest.raises(UserError, match="chat template"):
        encode(example(chat("hi"), "yo"), tokenizer(None), 64)


def test_a_template_that_refuses_roles_is_named() -> None:
    refusing = "{{ raise_exception('no system here') }}"
    with pytest.raises(UserError, match="refuses a chat with the roles user, assistant: no system here"):
        encode(example(chat("hi"), "yo"), tokenizer(refusing), 64)


def test_a_prompt_to_answer_opens_the_assistants_turn() -> None:
    tokens = tokenizer()
    assert tokens.decode(encode_prompt(chat("hi"), tokens)) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    whole = encode(example(chat("hi"), "yo"), tokens, 64)
    prompt = encode_prompt(chat("hi"), tokens)
    assert whole.ids[: len(prompt)] == prompt


def test_tokens_and_labels_are_trls(tmp_path: Any) -> None:
    from datasets import Dataset
    from tiny import save_model
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokens = tokenizer(CHATML)
    folder = save_model(tmp_path / "model")
    rows = {
        "text": [example(None, "abc def"), example(None, "x" * 60)],
        "pairs": [example("2+2=", " 4"), example("long " * 4, "answer " * 9)],
        "chat": [example(chat("hi"), "yo"), example(chat("a"), "d" * 90)],
    }
    sets = {
        "text": [{"text": e.completion} for e in rows["text"]],
        "pairs": [{"prompt": e.prompt, "completion": e.completion} for e in rows["pairs"]],
        "chat": [
            {"prompt": list(e.prompt or ()), "completion": [{"role": "assistant", "content": e.completion}]}
            for e in rows["chat"]
        ],
    }
    for name, content in sets.items():
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(folder),
            SFTConfig(
                str(tmp_path / name), max_length=48, use_cpu=True, bf16=False, report_to="none", logging_strategy="no"
            ),
            train_dataset=Dataset.from_list(content),
            processing_class=tokens,
        )
        ours = [row for row in (encode(e, tokens, 48) for e in rows[name]) if row.trained]
        theirs = list(trainer.train_dataset)
        assert [row.ids for row in ours] == [row["input_ids"] for row in theirs]
        assert [row.labels for row in ours] == [row["labels"] for row in theirs]
        assert len(ours) == 2
