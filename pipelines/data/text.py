"""Lines of a text file with the byte each begins at. What JSONL and CSV share."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipelines.data.base import Stamp, refuse_changed
from pipelines.data.files import GZIP
from pipelines.stage import UserError

BOM = b"\xef\xbb\xbf"
_OTHERS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file"}
_OTHERS |= {b"PK\x03\x04": "a ZIP or XLSX file", b"\x1f\x8b": "a gzip file", b"\x28\xb5\x2f\xfd": "a zstd file"}


def packed(path: str) -> bool:
    """Whether a file is named as gzip's."""
    return path.lower().endswith(GZIP)


def refuse_packed(path: str) -> None:
    """Check that bytes can be found by their place.

    Raises:
        UserError: if the file is packed.
    """
    if packed(path):
        raise UserError(f"{path}: streaming reads rows by their place, and gzip has none; unpack the file")


@contextmanager
def opened(path: str, stamp: Stamp) -> Iterator[IO[bytes]]:
    """A file for reading, unpacked.

    Raises:
        UserError: if it can't be read, is of another kind, or is no longer what it was.
    """
    refuse_changed(stamp)
    try:
        with (
            Path(path).open("rb") as raw,
            io.BufferedReader(gzip.GzipFile(fileobj=raw) if packed(path) else raw) as file,
        ):
            start = file.peek(6)[:6]
            for magic, name in _OTHERS.items():
                if start.startswith(magic):
                    raise UserError(
                        f"{path}: looks like {name}, not like UTF-8 text; save it as UTF-8, or name its format"
                    )
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def not_utf8(raw: bytes) -> str:
    """What is wrong with bytes that are no UTF-8, and what they may be."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} 0x{raw[error.start]:02x}"
        return f"not UTF-8 text ({reason}); if it is Windows-1252 or Latin-1, save the file as UTF-8"
    raise AssertionError("law must hold: called for bytes that are no UTF-8")
