"""PDF: the text of its pages by pypdf, a form feed between two pages."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

from pipelines.extras import needs
from pipelines.rag.base import Document
from pipelines.rag.config import Corpus
from pipelines.stage import UserError

_HALVES = re.compile("[\ud800-\udfff]")


def read_pdf(path: str, name: str, section: Corpus) -> Iterator[tuple[Document, str]]:
    """See `pipelines.rag.corpus.Reader`."""
    pypdf = needs("pypdf", f"corpus: {path} is a PDF file and")
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = pypdf.PdfReader(path)
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if locked else [page.extract_text() for page in reader.pages]
    except OSError as error:
        raise UserError(f"corpus: {path}: can't be read ({error.strerror})") from None
    except Exception as error:
        # A damaged file makes pypdf raise whatever its parser met: KeyError, RecursionError, errors of its own.
        raise UserError(
            f"corpus: {path}: can't be read as PDF ({type(error).__name__}: {error}); mend it, or move it out of the corpus"
        ) from error
    if locked:
        raise UserError(f"corpus: {path}: is locked by a password; save it without one, or move it out of the corpus")
    yield Document(name, _HALVES.sub("\ufffd", "\f".join(pages))), path
