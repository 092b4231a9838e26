"""A fine-tune's settings in a few words, for estimates of what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ADAPTER_NAMES = {
    "lora": "LoRA", "lokr": "LoKr", "loha": "LoHa", "vera": "VeRA", "ia3": "IA3", "prompt_tuning": "prompt tuning",
    "none": "all weights",
}  # fmt: skip
"""Adapters as people write them."""


def words(config: Mapping[str, Any]) -> str:
    """What matters of a configuration: `LoRA r 16, 4 rows of up to 256 tokens, bf16`."""
    kind = ADAPTER_NAMES[config["adapter"]]
    rank = "" if config["lora_r"] is None else f" r {config['lora_r']}"
    bits = {"load_in_8bit": ", 8-bit weights", "load_in_4bit": ", 4-bit weights"}.get(config["quantised"], "")
    return f"{kind}{rank}, {_rows_of(config)}, {config['precision']}{bits}"


def _rows_of(config: Mapping[str, Any]) -> str:
    rows = config["micro_batch_size"]
    return f"{rows} {config.get('item', 'row')}{'s' * (rows != 1)} of up to {config['longest']} tokens"
