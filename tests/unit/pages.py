"""What stands in the pages of `docs/`: YAML, files to write, commands to run, and which of them can't be run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
SHELL, YAML, PYTHON, OUTPUT = "sh", "yaml", "python", "text"
LANGUAGES = {SHELL, YAML, PYTHON, OUTPUT, "csv", "json"}
_FENCE = re.compile(
    r"(?:<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_NOT_RUN = "not run: "
_FILE = "file: "
_WORD = re.compile(r"(?<![\w./:-])[A-Za-z_]{3,}(?![\w./:-])")
_OUTCOME = re.compile(
    "better|worse|difference shown|told apart|stands alone|reject|accept|promoted|warning|last report"
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file it stands in.
        line: of the opening fence, from 1.
        language: what stands behind the fence.
        text: its lines.
        note: what an HTML comment on the line above says.
    """

    page: Path
    line: int
    language: str
    text: str
    note: str

    @property
    def not_run(self) -> str | None:
        """Why the block can't be run here; None where it can."""
        return self.note.removeprefix(_NOT_RUN) if self.note.startswith(_NOT_RUN) else None

    @property
    def foreign(self) -> str | None:
        """The name of another tool's file that the block is; None for ours."""
        return self.note.removeprefix(_FILE) if self.note.startswith(_FILE) else None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, of one language or of all."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, one.start("language")) + 1, one["language"], one["text"], one["note"] or "")
        for one in _FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def commands(block: Block) -> list[str]:
    """The commands of a shell block, one each: continued lines and here-documents belong to the line they began on."""
    made: list[str] = []
    lines = iter(block.text.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        whole = [line]
        while whole[-1].endswith("\\"):
            whole.append(next(lines))
        if end := re.search(r"<<'(\w+)'", line):
            for more in lines:
                whole.append(more)
                if more == end[1]:
                    break
        made.append("\n".join(whole))
    return made


def words(command: str) -> list[str]:
    """What the shell would hand to the program, comments left out."""
    return shlex.split(command.replace("\\\n", " "), comments=True)


def is_ours(command: str) -> bool:
    """Whether it is a `stockpot` command."""
    return command.startswith("stockpot ")


def unprinted(shown: str, printed: str) -> list[str]:
    """Lines that a page shows with a word that the commands did not print.

    Numbers, names of trials and paths may differ from machine to machine, and so may what depends on them: a line about who
    is better is not compared. A line of dots stands for what the page leaves out.
    """
    known = set(_WORD.findall(printed))
    return [line for line in shown.splitlines() if not _OUTCOME.search(line) and not set(_WORD.findall(line)) <= known]


def files(page: Path) -> dict[str, str]:
    """What a page says stands in a file: whole sweep files by their name, modules by the comment that they begin with,
    other tools' files by the comment above them."""
    found = {}
    for block in blocks(page):
        if block.foreign is not None:
            found[block.foreign] = block.text
        elif block.language == YAML and (name := re.match(r"name: (\S+)\n", block.text)):
            found[f"{name[1]}.yaml"] = block.text
        if block.language == PYTHON and (name := re.match(r"# (\w+\.py)\n", block.text)):
            found[name[1]] = block.text
    return found
