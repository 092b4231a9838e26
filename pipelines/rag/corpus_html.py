"""HTML: the text of a page as a reader sees it, by the standard library's parser.

Blocks end lines, paragraphs and their like are set apart by a blank line, cells of a table row by a tab; blanks are
squeezed outside `pre`. What is no text of the page (scripts, styles, templates, the head) is left out.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from html.parser import HTMLParser

from pipelines.rag.base import Document
from pipelines.rag.config import Corpus
from pipelines.rag.corpus_text import decoded, read_bytes
from pipelines.stage import UserError

LEFT_OUT = frozenset({"script", "style", "template", "noscript", "head", "svg", "math", "iframe", "object", "select"})
"""Elements without text of the page."""
PARAGRAPHS = frozenset(
    {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre", "blockquote", "section", "article"}
    | {"header", "footer", "nav", "aside", "main", "figure", "form", "fieldset", "hr", "details", "address"}
)
"""Elements that a blank line sets apart."""
LINES = frozenset({"div", "li", "dt", "dd", "tr", "br", "figcaption", "caption", "summary", "legend", "option", "body"})
"""Elements that begin and end a line."""
CELLS = frozenset({"td", "th"})
_BLANKS = re.compile(r"[ \t\n\r\f]+")
_DECLARED = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_LOOKED_AT = 4096


def read_html(path: str, name: str, section: Corpus) -> Iterator[tuple[Document, str]]:
    """See `pipelines.rag.corpus.Reader`."""
    yield Document(name, page_text(_decoded(path, read_bytes(path)))), path


def page_text(html: str) -> str:
    r"""The text of a page.

    Example:
        >>> page_text("<h1>Leave</h1><p>25 days <b>a year</b>.</p><ul><li>one</li><li>two</li></ul>")
        'Leave\n\n25 days a year.\n\none\ntwo\n'
    """
    page = _Page()
    page.feed(html)
    page.close()
    return page.text()


def _decoded(path: str, raw: bytes) -> str:
    """By what the page declares, else as UTF-8."""
    declared = _DECLARED.search(raw[:_LOOKED_AT])
    encoding = declared[1].decode("ascii", "replace") if declared else "utf-8"
    try:
        encoding = codecs.lookup(encoding).name
    except LookupError:
        raise UserError(f"corpus: {path}: declares the unknown charset {encoding!r}; save the page as UTF-8") from None
    if encoding in ("utf-8", "ascii"):
        return decoded(path, raw).removeprefix("\ufeff")
    try:
        return str(raw, encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise UserError(f"corpus: {path}: is not in the charset {encoding} that it declares ({error})") from None


class _Page(HTMLParser):
    """Collects text; `_break` is the line ends that wait for the next text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._break = 0
        self._blank = False
        self._skipped: list[str] = []
        self._pre = 0
        self._cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipped:
            if tag == self._skipped[-1]:
                self._skipped.append(tag)
            if tag != "body":
                return
            # A page may leave out </head>.
            self._skipped.clear()
        if tag in LEFT_OUT:
            self._skipped.append(tag)
            return
        self._edge(tag)
        self._pre += tag == "pre"
        if tag == "tr":
            self._cells = 0
        elif tag in CELLS:
            if self._cells and not self._break:
                self._parts.append("\t")
                self._blank = False
            self._cells += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self._skipped and tag not in LEFT_OUT:
            self._edge(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            if tag == self._skipped[-1]:
                self._skipped.pop()
            return
        self._edge(tag)
        self._pre -= tag == "pre" and self._pre > 0

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        if self._pre:
            self._add(data.replace("\r\n", "\n").replace("\r", "\n"))
            return
        squeezed = _BLANKS.sub(" ", data)
        self._blank |= squeezed.startswith(" ")
        inner = squeezed.strip(" ")
        if inner:
            self._add(inner)
            self._blank = squeezed.endswith(" ")

    def text(self) -> str:
        """What was collected, ended by a line end."""
        return "".join(self._parts).rstrip() + "\n" if any(part.strip() for part in self._parts) else ""

    def _edge(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self._break = 2
        elif tag in LINES:
            self._break = max(self._break, 1)

    def _add(self, text: str) -> None:
        if self._break and self._parts:
            self._parts.append("\n" * self._break)
        elif self._blank and self._parts and not self._parts[-1].endswith(("\t", "\n")):
            self._parts.append(" ")
        self._break, self._blank = 0, False
        self._parts.append(text)
