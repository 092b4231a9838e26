"""Every sweep file that the project shows loads: the examples as they are, the blocks of README and docs in a copy."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.describe import describe
from sweeps.load import load_file, load_text
from sweeps.problems import SpecError
from sweeps.sources import Source
from sweeps.yaml_source import read

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted([*(ROOT / "examples").rglob("*.yaml"), *(ROOT / "benchmarks").glob("*.yaml")])
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()]
BLOCK = re.compile(r"^( *)```ya?ml[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for count, found in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8"))):
            indent, text = found.groups()
            text = re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
            if re.search(r"^pipeline:", text, re.MULTILINE):
                yield f"{page.name}-{count}", text


BLOCKS = list(blocks())


def test_there_are_examples():
    assert "quickstart.yaml" in {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_load_as_they_are(path, tmp_path, monkeypatch):
    found = Source(str(tmp_path), "0" * 64)
    monkeypatch.setattr("sweeps.load.resolve_source", lambda text, storage, folder, several=False: found)
    try:
        loaded = load_file(path)
    except SpecError as error:
        outside = [
            problem for problem in error.problems if "is not there" in problem.message and "../" in problem.message
        ]
        if outside and len(outside) == len(error.problems):
            pytest.skip(f"needs data that is no part of the project: {outside[0].message}")
        raise
    assert describe(loaded)["name"] == loaded.spec.name


@pytest.mark.parametrize(("name", "text"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_blocks_of_the_pages_load(name, text, tmp_path, monkeypatch):
    found = Source(str(tmp_path), "0" * 64)
    monkeypatch.setattr("sweeps.load.resolve_source", lambda text, storage, folder, several=False: found)
    document = read(text.encode())
    assert document.problems == []
    for key, value in strings(document.data):
        local = key == "base_model" and (value.startswith(".") or value.endswith(".gguf")) and "://" not in value
        if key == "path" or local:
            place = tmp_path / value
            if place.resolve().is_relative_to(tmp_path.resolve()):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text('{"prompt": "a", "completion": "b", "text": "c", "messages": []}\n' * 200)
        elif key == "import_path":
            (tmp_path / f"{value.partition(':')[0].split('.')[0]}.py").touch()
    try:
        load_text(text.encode(), tmp_path)
    except SpecError as error:
        missing = [problem for problem in error.problems if "is not installed" in problem.message]
        if missing and len(missing) == len(error.problems):
            pytest.skip(missing[0].message)
        raise


def strings(value: object) -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                yield key, inner
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
