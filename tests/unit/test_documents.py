"""The pages of `docs/`: what stands in their YAML loads, and what stands in their shell blocks parses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import DOCS, GUIDES, LANGUAGES, SHELL, YAML, Block, blocks, commands, files, is_ours, unprinted, words

from sweeps import cli
from sweeps.load import load_text

PAGES = [DOCS / "tutorial.md", *GUIDES]
BASE: dict[str, Any] = {
    "name": "orders-sft",
    "pipeline": {
        "type": "sft",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "datasets": {
            "train": {"path": "orders.jsonl", "type": "prompt_completion"},
            **{split: {"fraction": 0.15} for split in ("tune", "select", "test")},
        },
        "max_steps": 72,
    },
    "parameters": {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 2e-3}},
    "metric": "loss",
    "budget": {"trials": 20},
    "soup": {"method": "greedy", "top": 3},
}
"""What the guides' fragments change."""
FILES = ("orders.jsonl", "articles.jsonl", "big.jsonl", "held-out.jsonl", "pairs.jsonl")
ALL = [block for page in PAGES for block in blocks(page)]
OURS = [
    (block, words(command))
    for block in ALL
    for command in commands(block)
    if block.language == SHELL and is_ours(command)
]


def completed(block: Block) -> dict[str, Any]:
    """The block's YAML; a fragment is put into the base file, key by key, `pipeline` and `datasets` one level deeper."""
    said: dict[str, Any] = yaml.safe_load(block.text)
    if "name" in said:
        return said
    made: dict[str, Any] = json.loads(json.dumps(BASE))
    pipeline = dict(said.pop("pipeline", {}))
    made["pipeline"]["datasets"] |= pipeline.pop("datasets", {})
    made["pipeline"] |= pipeline
    return made | said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    here, trained = tmp_path / "sweeps", tmp_path / "cross-encoder"
    here.mkdir()
    trained.mkdir()
    row = json.dumps({"prompt": "2 + 2 =", "completion": " 4", "article": "sums"}) + "\n"
    for name in FILES:
        (here / name).write_text(row)
    (here / "handbook").mkdir()
    (here / "handbook" / "page.md").write_text("The lift is tested on Monday.\n")
    asked = [json.dumps({"question": f"When is lift {i} tested?", "documents": ["page.md"]}) + "\n" for i in range(200)]
    (here / "questions.jsonl").write_text("".join(asked))
    (trained / "held_out.jsonl").write_text("".join(asked))
    for split in ("tune", "select", "test"):
        choice = {"question": f"Which is even in {split}?", "choices": ["1", "2"], "gold": 1}
        (here / f"choices_{split}.jsonl").write_text(json.dumps(choice) + "\n")
    (here / "parts").mkdir()
    (here / "parts" / "0.csv").write_text("question,answer\n2 + 2 =, 4\n")
    return here


def test_there_is_a_guide_a_task_and_each_is_in_the_index() -> None:
    assert len(GUIDES) >= 10
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"({page.relative_to(DOCS)})" not in index] == []
    assert [page.name for page in GUIDES if len(page.read_text(encoding="utf-8").splitlines()) >= 130] == []


@pytest.mark.parametrize("block", ALL, ids=str)
def test_every_block_is_of_a_language_that_tests_know(block: Block) -> None:
    assert block.language in LANGUAGES


@pytest.mark.parametrize("block", [block for block in ALL if block.language == YAML and block.foreign is None], ids=str)
def test_yaml_loads(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-a-test")
    for name, content in files(block.page).items():
        (folder / name).write_text(content)
    text = yaml.safe_dump(completed(block), sort_keys=False)
    loaded = load_text(text.encode(), folder, (), f"{block}")
    assert loaded.spec.name


@pytest.mark.parametrize(
    ("block", "said"), OURS, ids=lambda value: str(value) if isinstance(value, Block) else value[1]
)
def test_commands_parse(block: Block, said: list[str]) -> None:
    arguments = cli.parser().parse_args(said[1:])
    assert arguments.command in cli.COMMANDS


def test_a_misspelt_command_does_not_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["submit", "sweep.yaml", "--sett", "a=b"])
    assert "--sett" in capsys.readouterr().err


def test_continued_lines_and_here_documents_are_one_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n<!-- not run: no cluster -->\n```sh\n# a comment\ncat > a.py <<'END'\nprint(1)\n\nEND\n"
        "stockpot show x \\\n  --top 3  # the best\n```\n\n```yaml\na: 1\n```\n"
    )
    shell, other = blocks(page)
    assert (shell.line, shell.not_run, other.line, other.not_run) == (3, "no cluster", 13, None)
    here, show = commands(shell)
    assert here == "cat > a.py <<'END'\nprint(1)\n\nEND"
    assert words(show) == ["stockpot", "show", "x", "--top", "3"]
    assert [is_ours(here), is_ours(show)] == [False, True]


def test_what_a_page_shows_is_held_against_what_was_printed() -> None:
    printed = "trials   4/4 trials, done\nbest 0.5 (0000-ab at 10)\n"
    assert unprinted("trials   5/5 trials, done\nbest 0.7 (0001-cd at 10)\n...\nsoup is better", printed) == []
    assert unprinted("trials 4/4 trials, finished", printed) == ["trials 4/4 trials, finished"]
