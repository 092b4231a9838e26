"""Packages that not every installation has: one that is missing names the setting that wanted it, and its install line."""

from __future__ import annotations

import importlib
from types import ModuleType

from pipelines.stage import UserError

EXTRA = "rag"
"""The extra of our own distribution that brings most of them."""


def needs(package: str, setting: str, extra: str = EXTRA) -> ModuleType:
    """Import a package of an extra.

    Args:
        package: as it is imported: `sentence_transformers`.
        setting: what in the sweep file wanted it: `retrieve.embedding_model: wordllama`.
        extra: the extra that brings it.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package.partition(".")[0]:
            raise
        raise missing(package, setting, extra) from None


def missing(package: str, setting: str, extra: str = EXTRA) -> UserError:
    """The error of a package that is not installed, for those who look for its files without importing it."""
    return UserError(
        f"{setting} needs the package {package.replace('_', '-')}, which is not installed: pip install 'stockpot[{extra}]'"
    )
