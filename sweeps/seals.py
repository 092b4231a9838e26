"""Checksums of what a ledger holds, so that a flipped bit is damage that is said, and never a result."""

from __future__ import annotations

import hashlib
import zlib


def event_seal(seq: int, time: float, kind: str, body: str) -> int:
    """CRC-32 of an event as it is stored."""
    return zlib.crc32(f"{seq}\0{time!r}\0{kind}\0{body}".encode())


def items_seal(owner: str, resource: int, name: str, split: str, item_set: str, scores: bytes) -> int:
    """CRC-32 of item scores as they are stored."""
    return zlib.crc32("\0".join((owner, str(resource), name, split, item_set, "")).encode() + scores)


def text_seal(text: str) -> str:
    """SHA-256 (hex) of a segment's text."""
    return hashlib.sha256(text.encode()).hexdigest()
