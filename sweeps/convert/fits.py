"""Whether a value may stand at a key of a fine-tune, asked of the configuration's own types."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pipelines.config import SFTConfig
from sweeps.complaints import complaints
from sweeps.draft import type_config

_PLAIN: dict[str, Any] = {
    "type": "sft",
    "base_model": "org/model",
    "datasets": {"train": {"path": "org/data", "type": "text"}},
    "max_steps": 1,
}


def misfit(key: str, value: Any) -> str | None:
    """Why a value can't stand at a key of an SFT pipeline; None where it can. Rules between keys are not asked."""
    config = {**_PLAIN, key: value}
    try:
        type_config(config)
    except ValidationError as error:
        for found in complaints(error, config, (SFTConfig,), "pipeline"):
            if found.kind != "rule" and found.path[:1] == (key,):
                return found.message
    return None


def default_of(key: str) -> Any:
    """What a key is when the file does not say it.

    Raises:
        KeyError: if there is no such key, or it must be given.
    """
    declared = SFTConfig.model_fields[key]
    if declared.is_required():
        raise KeyError(key)
    value = declared.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value
