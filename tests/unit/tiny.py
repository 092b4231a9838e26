"""A tiny random Llama with a byte tokenizer, and rows to train it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(template: str | None = CHATML) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    body = Tokenizer(models.BPE(vocab={symbol: place for place, symbol in enumerate(alphabet)}, merges=[]))
    body.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    body.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=body, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    made.chat_template = template
    return made


def save_model(
    folder: Path, seed: int = 0, layers: int = 2, hidden: int = 32, words: int = 0, spread: float = 0.02
) -> Path:
    """A folder that loads as a base model; `words` is the height of its embedding, where it is filled up.

    With the usual spread of the first weights its answers are near to even; with 0.3 they are opinions.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words or len(tokens),
            hidden_size=hidden,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=spread,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows `a+b=` -> the sum in words of unequal lengths."""
    return [
        {"prompt": f"{i}+{i % 7}=", "completion": "one " * (i % 3) + str(i + i % 7)}
        for i in range(first, first + count)
    ]
