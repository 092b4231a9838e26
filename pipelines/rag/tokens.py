"""Tokens of a named tokenizer: counted by the tokenizers library on a model's `tokenizer.json`; no transformers, no torch.

Special tokens that a model would put around a text are not counted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.packages import HUB_SECONDS, PACKAGE, first_line, hub_failures, named_path
from pipelines.stage import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_ALTERNATIVES = "Give a hub id, a folder with tokenizer.json, or package://module/path"


@lru_cache(maxsize=8)
def load_tokenizer(source: str) -> Tokenizer:
    """A tokenizer that neither cuts nor pads.

    Args:
        source: hub id, folder, or `package://module/path` of a model.

    Raises:
        UserError: if there is none, or its file can't be read.
    """
    from tokenizers import Tokenizer

    path = _file(source)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises bare `Exception` for whatever its Rust half met.
        raise UserError(f"tokenizer: {path} can't be read as a tokenizer ({error}). {_ALTERNATIVES}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_starts(source: str, text: str) -> list[int]:
    """`starts` of a named tokenizer."""
    return starts(load_tokenizer(source), text) if text else []


def starts(tokenizer: Tokenizer, text: str) -> list[int]:
    """The character each token begins at, in order; equal neighbours are tokens within one character.

    A character that a token shares with the one before counts to the later one, so a text cut at any of these numbers is
    cut between characters.
    """
    if not text:
        return []
    found: list[int] = []
    reached = 0
    for start, _ in tokenizer.encode(text, add_special_tokens=False).offsets:
        reached = max(reached, start)
        found.append(reached)
    return found


def _file(source: str) -> Path:
    folder = named_path(source, "tokenizer")
    if folder.name == FILE and folder.is_file():
        return folder
    if (folder / FILE).is_file():
        return folder / FILE
    if folder.exists() or source.startswith(PACKAGE) or not _HUB_ID.fullmatch(source):
        raise UserError(f"tokenizer: {folder} holds no {FILE}. {_ALTERNATIVES}")
    return _from_hub(source)


def _from_hub(source: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    try:
        local = try_to_load_from_cache(source, FILE)
        if isinstance(local, str):
            return Path(local)
        revision = HfApi().model_info(source, timeout=HUB_SECONDS).sha  # fails at once, where a download tries for 23 s
        return Path(hf_hub_download(source, FILE, revision=revision, etag_timeout=HUB_SECONDS))
    except hub_failures() as error:
        raise UserError(
            f"tokenizer: {source!r} is no folder here and can't be fetched from the model hub "
            f"({type(error).__name__}: {first_line(error)}). {_ALTERNATIVES}"
        ) from error
