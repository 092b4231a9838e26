"""The page as text: escaping, the policy, what it weighs; and the command that writes it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from report_sweeps import simulated

from sweeps import cli
from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.report.page import SCRIPTS, build_page, embedded
from sweeps.report.record import report_record
from sweeps.report.write import try_report, write_report

ASSETS = Path(__file__).resolve().parents[2] / "sweeps" / "report" / "assets"
HOSTILE = "</script><script>alert(1)</script><!-- \u2028 \" ' & \\ {{script}}"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    return simulated(tmp_path_factory.mktemp("big"))


def data_of(page: str) -> dict[str, object]:
    block = re.search(r'<script type="application/json" id="record">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    return json.loads(block[1])


def test_the_page_holds_the_record_and_nothing_from_elsewhere(big: SweepPaths) -> None:
    record = report_record(big)
    page = build_page(record)
    assert data_of(page) == record
    assert page.count("<script") == 3
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", outside) == []
    assert "url(" not in outside
    assert "@import" not in outside


def test_scripts_and_style_are_allowed_by_their_hashes_alone(big: SweepPaths) -> None:
    for live in (False, True):
        page = build_page(report_record(big), live=live)
        csp = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
        assert csp is not None
        allowed = set(re.findall(r"'sha256-([^']+)'", csp[1]))
        inline = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", page, re.DOTALL)
        digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline}
        assert len(inline) == 3
        assert allowed == digests
        assert "default-src 'none'" in csp[1]
        assert ("connect-src 'self'" in csp[1]) == live
        assert "unsafe-inline" not in csp[1].split("style-src-attr")[0]


def test_it_is_light(big: SweepPaths, tmp_path: Path) -> None:
    assert len(build_page(report_record(big)).encode()) < 1_000_000
    huge = simulated(tmp_path, trials=200, total=512, name="huge")
    assert len(report_record(huge)["milestones"]) == 9
    assert len(build_page(report_record(huge)).encode()) < 2_000_000


def test_no_text_ends_the_data_block_or_fills_a_slot(tmp_path: Path) -> None:
    from sweeps.failures import Failure

    broken = Failure("user", HOSTILE + "x" * 1_000_000, "")
    paths = simulated(tmp_path, trials=4, total=8, finish=False, broken=lambda lease, at: broken)
    page = build_page(report_record(paths))
    assert page.count("<script") == 3
    assert page.count("</script>") == 3
    assert len(page) < 1_000_000
    record = data_of(page)
    message = record["trials"][0]["runs"][0]["failures"][0]["message"]
    assert message.startswith(HOSTILE)
    assert "characters left out" in message
    assert embedded({"a": HOSTILE + "\ud800"}).isascii()
    assert not set("<>&") & set(embedded({"a": HOSTILE}))


def test_a_hostile_name_is_text_in_the_head(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "s", durable=False)
    ledger.append([Event("sweep_created", {"name": HOSTILE, "spec": {}, "versions": {}, "space": {}})])
    ledger.close()
    page = build_page(report_record(SweepPaths(tmp_path / "s")))
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    assert title is not None
    assert title[1].startswith("&lt;/script&gt;&lt;script&gt;")
    assert "{{script}}" in title[1]


def test_the_scripts_parse_no_html() -> None:
    for part in SCRIPTS:
        text = (ASSETS / "js" / f"{part}.js").read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            part
        )


def test_the_vendored_library_is_the_one_its_readme_names() -> None:
    readme = (ASSETS / "vendor" / "README.md").read_text(encoding="utf-8")
    library = (ASSETS / "vendor" / "echarts.min.js").read_bytes()
    assert hashlib.sha256(library).hexdigest() in readme
    tools = json.loads((ASSETS.parents[2] / "tools" / "charts" / "package.json").read_text())
    for name, version in {**tools["dependencies"], **tools["devDependencies"]}.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert f"{name} {version}" in readme.replace("ECharts", "echarts").replace("Apache ", "")
    assert b"Apache ECharts 6" in library[:200]
    licence = (ASSETS / "vendor" / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "Redistribution and use in source and binary forms" in licence


def test_every_asset_ships() -> None:
    import tomllib
    from fnmatch import fnmatch

    root = ASSETS.parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "sweeps.report"
    ]
    files = [str(path.relative_to(ASSETS.parent)) for path in ASSETS.rglob("*") if path.is_file()]
    assert len(files) > 12
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []


def test_the_command_writes_aside_and_says_where(
    big: SweepPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert cli.main(["report", str(big.root), "-o", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"report: {out} (0.")
    assert list(tmp_path.iterdir()) == [out]
    assert cli.main(["report", str(big.root)]) == 0
    assert big.report.read_text(encoding="utf-8") == out.read_text(encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["report", str(big.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report_record(big)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "there is no sweep 'nothing'"),
        (["{big}", "-o", "/no/such/folder/x.html"], "can't be written to /no/such/folder/x.html"),
        (["{big}", "--watch", "--json"], "--watch serves the page"),
        (["{big}", "--port", "80"], "--port and --host are for --watch"),
        (["{big}", "--watch", "--port", "99999"], "must be a port from 0 to 65535"),
        (["{big}", "--json", "-o", "x.html"], "--json prints the page's record"),
    ],
)
def test_mistakes(words: list[str], said: str, big: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", *(word.format(big=big.root) for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_a_report_that_fails_never_fails_the_sweep(tmp_path: Path) -> None:
    said: list[str] = []
    assert try_report(SweepPaths(tmp_path / "nothing"), said.append) is None
    assert said[0].startswith("the report could not be written: LedgerError: there is no sweep")
    paths = simulated(tmp_path, trials=4, total=8, finish=False)
    paths.report.mkdir()
    assert try_report(paths, said.append) is None
    assert "the report could not be written" in said[1]
    assert [path.name for path in paths.root.iterdir() if path.name.endswith(".tmp")] == []
    paths.report.rmdir()
    assert write_report(paths) == paths.report
