"""Base of every part of the `pipeline:` section. Only pydantic and the standard library."""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic_core import PydanticCustomError

from evaluators.field_texts import Documented

CLASS_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
HASH_PATTERN = r"^[0-9a-f]{64}$"
URL_PATTERN = r"^https?://"


class Config(Documented):
    """Base of every part of the file: frozen, unknown keys fail, the text under a field documents it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def wrong(field: str, message: str) -> PydanticCustomError:
    """What a cross-field rule raises: the field to point at, and what is wrong with the mend."""
    return PydanticCustomError("rule", "{message}", {"field": field, "message": message})
