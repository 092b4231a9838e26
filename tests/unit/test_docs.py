"""What the pages say is so: links, commands, the README's file, the records of the ledger."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from sweeps import cli, events

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def inside(part: object, whole: object, place: str = "") -> list[str]:
    """Where `part` says something that `whole` does not."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return [
            problem
            for key, value in part.items()
            for problem in (inside(value, whole[key], f"{place}.{key}") if key in whole else [f"{place}.{key} is new"])
        ]
    return [] if part == whole else [f"{place}: {part!r} is not {whole!r}"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    gone = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not gone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_code_are_there(page: Path) -> None:
    named = re.findall(
        r"`((?:tests|sweeps|pipelines|evaluators|cluster|examples|docs)/[\w./]+\.\w+)`", page.read_text()
    )
    gone = [name for name in named if not (ROOT / name).exists() and "NAME" not in name and "..." not in name]
    assert not gone


def test_the_readme_shows_the_quickstart() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    shown = yaml.safe_load(blocks[0])
    whole = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text(encoding="utf-8"))
    shown.pop("evaluate")
    assert inside(shown, whole) == []
    assert inside({"metric": "exact", "new": 1}, whole) == [".metric: 'exact' is not 'loss'", ".new is new"]


def test_the_readme_names_every_command_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listed = set(re.findall(r"^ {4}([a-z]+) {2,}", capsys.readouterr().out, re.MULTILINE))
    assert {"submit", "resume", "show", "soup"} <= listed
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^stockpot ([a-z]+)", text, re.MULTILINE)) | set(
        re.findall(r"stockpot ([a-z]+) NAME", text)
    )
    named |= set(re.findall(r"· ([a-z]+)$", text, re.MULTILINE))
    assert named == listed


def test_make_targets_named_in_the_pages_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`?make ([a-z-]+)`", page.read_text(encoding="utf-8"))) <= targets
    ci = [shlex.split(line) for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert ci == [["make", "check"], ["make", "test"], ["make", "test-slow"]]


def test_the_contracts_name_every_event() -> None:
    kinds = re.findall(r"^ {4}([a-z_]+) +\{", events.__doc__ or "", re.MULTILINE)
    assert len(kinds) > 15
    text = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
    assert [kind for kind in kinds if f"`{kind}`" not in text] == []


def test_constraints_pin_every_direct_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {re.split("==", line)[0].lower().replace("_", "-"): line for line in lines}
    assert all(re.fullmatch(r"[\w.-]+==[\w.!-]+", line) for line in lines), "one plain pin a line"
    wanted = [one for one in wanted if not one.startswith("stockpot[")]
    wanted += project["optional-dependencies"]["rag"]
    assert [one for one in wanted if re.split(r"[\[<>=]", one)[0].lower() not in pins] == []
    assert not any("nvidia" in name or name == "triton" for name in pins)
