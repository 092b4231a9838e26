"""The commands of `docs/guides/`, run as they stand there: on one sweep of a tiny model, and on a pipeline of one's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from pages import DOCS, GUIDES, OUTPUT, SHELL, blocks, commands, files, is_ours, unprinted
from tiny import save_model

pytestmark = pytest.mark.slow

EXAMPLES = DOCS.parent / "examples"
SMALL = (
    "budget.trials=4", "max_steps=4", "gradient_accumulation_steps=1", "sequence_len=128", "soup.top=2",
    "early_terminate={type: asha, min: 2, eta: 2}", "evaluate=[{type: json_fields, when: final, max_new_tokens: 2}]",
)  # fmt: skip
"""What the tutorial's sweep is made smaller by."""


def run(command: str, folder: Path) -> str:
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's folder after its sweep, but with a model of two tiny layers."""
    here = tmp_path_factory.mktemp("guides")
    rows, init = blocks(DOCS / "tutorial.md", SHELL)[:2]
    for command in commands(rows):
        run(command, here)
    save_model(here / "model")
    for command in commands(init):
        run(re.sub(r"package://\S+", "./model", command), here)
    shutil.copytree(EXAMPLES / "handbook", here / "handbook")
    shutil.copy(EXAMPLES / "handbook_questions.jsonl", here)
    run("stockpot submit sweep.yaml " + " ".join(f"--set '{one}'" for one in SMALL), here)
    return here


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_commands_run_and_print_what_the_page_shows(page: Path, folder: Path) -> None:
    for name, text in files(page).items():
        (folder / name).write_text(text)
    printed = ""
    for block in blocks(page):
        if block.language == SHELL and block.not_run is None:
            for command in commands(block):
                assert is_ours(command)
                printed += run(command, folder)
        if block.language == OUTPUT and not block.note:
            assert unprinted(block.text, printed) == [], str(block)


def test_what_is_not_run_says_why() -> None:
    shown = [block for page in GUIDES for block in blocks(page, SHELL)]
    marked = [block for block in shown if block.not_run is not None]
    assert 0 < len(marked) < len(shown) / 3
    assert [str(block) for block in marked if not block.not_run] == []
