"""Prompt tuning: trained embeddings before every row, wherever the row's padding is.

PEFT's own forward ignores position ids and puts the prompt before every piece that is fed, so that a batch padded on the left
and a cached continuation get another distance between prompt and text, or a second prompt. Here the prompt stands once, at
positions 0 to n - 1, a row's tokens follow at n, n + 1, ..., and padding in between is masked: batched equals single. Without
padding and cache it is what PEFT computes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch


def prompted(adapted: Any) -> Any:
    """The `PeftModel` with a forward of ours, which `detach` leaves behind with it."""
    adapted.prompt_off = False
    adapted.forward = partial(_forward, adapted)
    return adapted


def is_prompted(adapted: Any) -> bool:
    """Whether a `PeftModel` has virtual tokens."""
    return hasattr(adapted, "prompt_encoder")


def _forward(
    adapted: Any,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Any = None,
    **rest: Any,
) -> Any:
    """As the base model's forward; hidden states and logits have the n virtual places in front, unless they are in the cache.

    Args:
        adapted: the model with a prompt of n tokens.
        input_ids: (batch, seq).
        attention_mask: (batch, seq), or with a cache (batch, seen + seq), the prompt not counted.
        position_ids: (batch, seq), counted without the prompt; by the mask where None.
        past_key_values: the cache, empty at the beginning.
        rest: for the base model.
    """
    base = adapted.base_model
    if adapted.prompt_off:
        return base(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **rest,
        )
    assert input_ids is not None, "virtual tokens are put before tokens, but there are none"
    count = adapted.active_peft_config.num_virtual_tokens
    batch, length = input_ids.shape
    begun = past_key_values is not None and past_key_values.get_seq_length() > 0
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if position_ids is None:
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]
    embedded = base.get_input_embeddings()(input_ids)
    positions = position_ids + count
    if not begun:
        prompt = adapted.get_prompt(batch_size=batch).to(embedded.dtype)
        embedded = torch.cat([prompt, embedded], dim=1)
        places = torch.arange(count, device=positions.device, dtype=positions.dtype)
        positions = torch.cat([places.expand(batch, -1), positions.expand(batch, -1)], dim=1)
    mask = torch.cat([mask.new_ones(batch, count), mask], dim=1)
    return base(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=past_key_values,
        **rest,
    )
