"""The memo: every model call is content-addressed and computed once, across trials, sweeps and restarts.

Key = SHA-256 of the canonical JSON of everything the answer depends on. Value = bytes (safetensors or JSON) with a
checksum and what it cost the first time. This module has the contract and the local store (SQLite, one writer).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Call:
    """Everything an answer depends on.

    Attributes:
        kind: `generate`, `token_losses`, `embed`, `rerank`, `judge`, ...
        function: version of our code that computes it; raise it when the answer changes.
        model: content hash of weights and configuration, adapter included.
        tokenizer: content hash of the tokenizer and chat template.
        dtype: `float32`, `bfloat16`.
        input: exact input, JSON.
        parameters: sampling and other settings, JSON.
        seed: of a sampled answer; None for a deterministic one.
    """

    kind: str
    function: int
    model: str
    tokenizer: str
    dtype: str
    input: Any
    parameters: Mapping[str, Any]
    seed: int | None = None

    @property
    def key(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all fields."""
        body = json.dumps(self.__dict__, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(body.encode()).hexdigest()


@dataclass(frozen=True)
class Cost:
    """What an answer cost when it was computed."""

    seconds: float = 0.0
    tokens: int = 0
    price: float = 0.0


@dataclass(frozen=True)
class Claim:
    """Answer to `claim` for one key.

    `hit`: value and cost are there. `yours`: compute it, then `fulfil` or `release`. `wait`: somebody else computes it;
    ask again.
    """

    state: Literal["hit", "yours", "wait"]
    value: bytes | None = None
    cost: Cost | None = None


@dataclass(frozen=True)
class MemoStats:
    """Counters since the store was opened, and what lies in it."""

    hits: int
    misses: int
    waits: int
    corrupt: int
    entries: int
    bytes: int
    saved: Cost


class Memo(Protocol):
    """One writer; claims expire, so a dead claimer blocks nobody."""

    def claim(self, keys: Sequence[str], owner: str) -> list[Claim]:
        """For each key: the stored value, or the right to compute it, or the word to wait."""
        ...

    def fulfil(self, key: str, owner: str, value: bytes, cost: Cost) -> None:
        """Store a computed value."""
        ...

    def release(self, key: str, owner: str) -> None:
        """Give a claim back without a value."""
        ...

    def stats(self) -> MemoStats:
        """Counters."""
        ...
