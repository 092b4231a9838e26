"""The report in headless Chromium: brush, sort, search, hover, colours, phone, print, a running sweep; no error, no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from report_sweeps import FILE, ONE_AXIS, simulated

from sweeps.events import Event
from sweeps.failures import Failure
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.report.serve import ReportServer
from sweeps.report.write import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs root to install chromium"),
]


class Watched:
    """A page whose console, errors and requests are kept."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def see(self, path: Path) -> Any:
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#title")
        return self.page

    def js(self, text: str) -> Any:
        return self.page.evaluate(text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield made
        made.close()


@pytest.fixture
def watched(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Opens pages; at the end none may have complained or asked anything of the network."""
    opened: list[Watched] = []

    def make(**settings: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1360, "height": 900}, **settings})
        opened.append(Watched(context.new_page()))
        return opened[-1]

    yield make
    for one in opened:
        one.page.context.close()
        assert one.complaints == []
        assert [url for url in one.asked if not url.startswith(("file:", "data:", "http://127.0.0.1:"))] == []


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(simulated(tmp_path_factory.mktemp("big")))


def rows(page: Any) -> list[str]:
    found: list[str] = page.evaluate("[...document.querySelectorAll('#board-body tr.line')].map(r => r.dataset.trial)")
    return found


def column(page: Any, title: str) -> list[str]:
    found: list[str] = page.evaluate(
        """title => {
            const heads = [...document.querySelectorAll('#leaderboard-table thead th')].map(th => th.textContent);
            const at = heads.findIndex(text => text.startsWith(title));
            return [...document.querySelectorAll('#board-body tr.line')].map(row => row.children[at].textContent);
        }""",
        title,
    )
    return found


def wait(page: Any, condition: str, seconds: float = 30.0) -> None:
    """Until a condition holds; the page's policy forbids the driver's own waiting, which evaluates text."""
    for _ in range(int(seconds / 0.05)):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} never held")


def numbers(texts: list[str]) -> list[float]:
    known = [text for text in texts if text != "–"]
    assert texts[: len(known)] == known, "what is unknown must come last"
    return [float(text.split()[0].replace("−", "-")) for text in known]


def drag(page: Any, axis: int, low: float, high: float) -> None:
    """Brush an axis of the parallel coordinates between two shares of its height."""
    page.locator("#parameters-chart").scroll_into_view_if_needed()
    box = page.locator("#parameters-chart").bounding_box()
    names = page.locator("#parameters-chart svg text[font-weight='600'], #parameters-chart svg text[style*='600']")
    place = names.nth(axis).bounding_box()
    x = place["x"] + place["width"] / 2
    top, bottom = box["y"] + 46, box["y"] + box["height"] - 20
    page.mouse.move(x, bottom - low * (bottom - top))
    page.mouse.down()
    page.mouse.move(x, bottom - (low + high) / 2 * (bottom - top), steps=4)
    page.mouse.move(x, bottom - high * (bottom - top), steps=4)
    page.mouse.up()
    page.wait_for_timeout(150)


def test_brush_filters_the_table_and_the_curves_and_lets_go(big: Path, watched: Callable[..., Watched]) -> None:
    page = watched().see(big)
    page.click("#board-all")
    before = rows(page)
    assert len(before) == 64
    faint = "[...document.querySelectorAll('#curves-chart svg path')].filter(p => p.hasAttribute('stroke-opacity') && Number(p.getAttribute('stroke-opacity')) <= 0.05).length"
    assert page.evaluate(faint) == 0
    drag(page, 0, 0.62, 0.97)
    chosen = rows(page)
    assert 3 < len(chosen) < 50
    rates = numbers(column(page, "learning_rate"))
    # The axis runs from 1e-5 to 1e-2 in its upper 86 %, below it is the place of what is not set.
    assert min(rates) > 10 ** (-5 + 3 * ((0.62 * 1.16 - 0.16) - 0.05))
    assert page.evaluate(faint) > 10
    assert "selected" in page.inner_text("#board-count")
    drag(page, 1, 0.95, 1.02)
    assert set(column(page, "rank")) == {"32"}
    assert set(rows(page)) < set(chosen)
    page.click("#parameters-readout button")
    page.wait_for_timeout(100)
    assert rows(page) == before
    assert page.evaluate(faint) == 0


def test_sorting_searching_and_opening_rows(big: Path, watched: Callable[..., Watched]) -> None:
    page = watched().see(big)
    page.click("#board-all")
    page.get_by_role("button", name="learning_rate").click()
    rates = numbers(column(page, "learning_rate"))
    assert rates == sorted(rates)
    head = page.locator("#leaderboard-table th", has_text="learning_rate")
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    rates = numbers(column(page, "learning_rate"))
    assert rates == sorted(rates, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="tune/loss").click()
    losses = numbers(column(page, "tune/loss"))
    assert losses == sorted(losses)
    page.fill("#search", "rank=32 learning_rate>1e-3 adamw")
    assert set(column(page, "rank")) == {"32"}
    assert set(column(page, "optimizer")) == {"adamw"}
    assert min(numbers(column(page, "learning_rate"))) > 1e-3
    page.fill("#search", "failed")
    assert all(text.startswith("failed") for text in column(page, "state"))
    page.keyboard.press("Tab")
    page.fill("#search", "")
    button = page.locator("#board-body button").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("#board-body button").first.get_attribute("aria-expanded") == "true"
    inside = page.inner_text("#board-body tr.inside")
    assert "reached the total" in inside
    assert "kwargs.learning_rate = " in inside


def test_hover_tells_one_run(big: Path, watched: Callable[..., Watched]) -> None:
    page = watched().see(big)
    first = rows(page)[0]
    page.hover("#board-body tr.line")
    page.wait_for_timeout(80)
    assert first in page.inner_text("#curves-readout")
    band = "[...document.querySelectorAll('#curves-chart svg path')].filter(p => p.getAttribute('fill-opacity') === '0.16').length"
    assert page.evaluate(band) == 1
    page.mouse.move(5, 5)
    page.wait_for_timeout(80)
    assert page.evaluate(band) == 0
    page.locator("#curves-chart").scroll_into_view_if_needed()
    box = page.evaluate(
        """() => { const own = getComputedStyle(document.documentElement).getPropertyValue('--accent').trim();
            const line = [...document.querySelectorAll('#curves-chart svg path')].find(p => p.getAttribute('stroke') === own);
            const end = line.getPointAtLength(line.getTotalLength()).matrixTransform(line.getScreenCTM()); return [end.x, end.y]; }"""
    )
    page.mouse.move(box[0], box[1], steps=3)
    page.wait_for_timeout(150)
    assert first in page.inner_text("#curves-readout")
    assert first in page.inner_text(".tip")
    assert page.locator(f"tr[data-trial='{first}']").get_attribute("class").endswith("hot")


def test_axes_can_be_logarithmic(big: Path, watched: Callable[..., Watched]) -> None:
    page = watched().see(big)
    for label in ("Logarithmic horizontal axis", "Logarithmic vertical axis"):
        before = page.evaluate("document.querySelector('#curves-chart svg').innerHTML")
        page.get_by_label(label).click()
        assert page.evaluate("document.querySelector('#curves-chart svg').innerHTML") != before
    page.get_by_label("Which numbers the curves show").select_option("train/loss")
    assert "train/loss" in page.inner_text("#curves-chart")


def test_dark_and_light(big: Path, watched: Callable[..., Watched]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = watched(color_scheme="light").see(big)
    assert light.evaluate(ground) == "rgb(255, 255, 255)"
    dark = watched(color_scheme="dark").see(big)
    assert dark.evaluate(ground) == "rgb(18, 21, 24)"
    dark.click("#theme")
    assert dark.evaluate(ground) == "rgb(255, 255, 255)"
    dark.click("#theme")
    assert dark.evaluate(ground) == "rgb(18, 21, 24)"
    light.emulate_media(color_scheme="dark")
    wait(light, f"{ground} === 'rgb(18, 21, 24)'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_enough(big: Path, watched: Callable[..., Watched], scheme: str) -> None:
    page = watched(color_scheme=scheme).see(big)
    found = page.evaluate(
        """() => { const style = getComputedStyle(document.documentElement);
            return Object.fromEntries(['paper', 'wash', 'ink', 'soft', 'faint', 'accent', 'soup', 'bad'].map(name => [name, style.getPropertyValue('--' + name).trim()])); }"""
    )

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in ("paper", "wash"):
        for name in ("ink", "soft", "faint", "accent", "soup", "bad"):
            a, b = sorted((light(found[ground]), light(found[name])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, (scheme, name, ground)


def test_on_a_phone_the_page_does_not_scroll_sideways(big: Path, watched: Callable[..., Watched]) -> None:
    page = watched(viewport={"width": 390, "height": 844}, has_touch=True).see(big)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.querySelector('#leaderboard-table').scrollWidth") > 390
    for button in page.locator("#board-body button").all()[:2]:
        button.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    wide = "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().right > 391).length"
    assert page.evaluate(wide) == 0


def test_prints_everything_in_light(big: Path, watched: Callable[..., Watched], tmp_path: Path) -> None:
    one = watched(color_scheme="dark", viewport={"width": 694, "height": 1000})
    page = one.see(big)
    pdf = page.pdf(path=str(tmp_path / "page.pdf"), prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert 5 < len(re.findall(rb"/Type\s*/Page\b", pdf)) < 40
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(rows(page)) == 64
    assert page.evaluate("document.documentElement.scrollWidth") <= 694
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 24)"
    assert not page.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")


HOSTILE = "<img src=x onerror=document.title='owned'></script><script>document.title='owned'</script>\u2028'\""


def small(tmp_path: Path, kind: str) -> SweepPaths:
    if kind.startswith("failed"):
        text = ONE_AXIS if kind == "failed, of one axis" else FILE
        broken = lambda *_: Failure("user", HOSTILE, "")  # noqa: E731
        return simulated(tmp_path, trials=4, total=8, finish=False, broken=broken, text=text)
    if kind == "empty":
        Ledger.create(tmp_path / "empty", durable=False).close()
        return SweepPaths(tmp_path / "empty")
    if kind == "old":
        paths = simulated(tmp_path, trials=6, total=8)
        paths.resolved_spec.write_text("{}")
        return paths
    if kind == "two hundred":
        return simulated(tmp_path, trials=200)
    return simulated(tmp_path, trials=3, total=9, stop="{type: none}", broken=None)


@pytest.mark.parametrize("kind", ["failed", "failed, of one axis", "empty", "old", "three", "two hundred"])
def test_any_sweep_has_a_page(kind: str, tmp_path: Path, watched: Callable[..., Watched]) -> None:
    page = watched().see(write_report(small(tmp_path, kind)))
    assert page.evaluate("document.title").endswith("· Stockpot")
    assert page.evaluate("document.documentElement.scrollWidth") == 1360
    assert page.evaluate("[...document.querySelectorAll('img, iframe, object')].length") == 0
    assert page.locator("#parameters").is_visible() == (kind not in ("empty", "failed, of one axis"))
    if kind.startswith("failed"):
        assert HOSTILE.split("\u2028")[0] in page.inner_text("#endings-list")
    if kind == "three":
        assert "3 of the 20 ended trials" in page.inner_text("#importance-lead")
    if kind == "two hundred":
        assert len(rows(page)) == 60


def test_follows_a_running_sweep_and_says_when_it_ends(tmp_path: Path, watched: Callable[..., Watched]) -> None:
    paths = simulated(tmp_path, trials=30, total=16, finish=False)
    ledger = Ledger.open(paths.root, durable=False)
    ledger.append([Event("driver_started", {"pid": 1, "host": "h", "version": "0"})])
    server = ReportServer(paths)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    page = watched().page
    try:
        page.goto(server.url)
        wait(page, "document.querySelector('#live').textContent === 'Live'")
        assert page.inner_text("#title").startswith("Running: ")
        drag(page, 0, 0.5, 0.99)
        chosen = rows(page)
        assert 0 < len(chosen) < 30
        page.fill("#search", "rank>4")
        left = rows(page)
        page.wait_for_timeout(800)  # the page scrolls smoothly to what was filled in
        scroll = page.evaluate("scrollY")
        config = {"type": "custom", "kwargs": {}}
        fresh = {"trial": "0030-abcdef12", "order": 30, "config": config, "choices": {}, "milestones": [16]}
        ledger.append([Event("suggested", {**fresh, "parameters": {"kwargs.rank": 4}})])
        wait(page, "document.querySelector('#figures').textContent.includes('31')")
        assert rows(page) == left
        assert page.input_value("#search") == "rank>4"
        assert abs(page.evaluate("scrollY") - scroll) < 3
        ledger.append([Event("sweep_finished", {"trials": 31, "failed": 0, "best": None, "seconds": 1})])
        wait(page, "document.querySelector('#live').textContent.startsWith('The sweep has ended')")
    finally:
        page.close()
        ledger.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_command_writes_what_a_browser_reads(big: Path, tmp_path: Path, watched: Callable[..., Watched]) -> None:
    out = tmp_path / "page.html"
    stockpot = str(Path(sys.executable).with_name("stockpot"))
    done = subprocess.run(
        [stockpot, "report", str(big.parent), "-o", str(out)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert watched().see(out).inner_text("#title").startswith("The best single model")
