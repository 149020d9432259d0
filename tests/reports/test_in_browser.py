"""Pages in a real browser: drawn without the network, usable by keyboard, readable by a screen reader, at any width."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_sweep, train

from angle.reports.writing import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    axes = {"loss.ibn_w": ["10", "20", "30"], "loss.angle_tau": ["1", "20"]}
    runs = [train(folder / "a"), train(folder / "b", learning_rate=0.02)]
    return {
        "run": write_report(runs[:1], pictures=False),
        "runs": write_report(runs, folder / "comparison", pictures=False),
        "sweep": write_report([make_sweep(folder / "sweep", axes, {("loss.ibn_w", "20"): 0.05})], pictures=False),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])


def open_page(browser: Any, path: Path, width: int, scheme: str, **options: Any) -> tuple[Any, list[str]]:
    """Return a page that is drawn, and what it complained about or asked the network for."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options).new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url == path.as_uri() else problems.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-drawn]")
    return page, problems


@pytest.mark.parametrize("kind", ["run", "runs", "sweep"])
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_a_page_is_drawn_and_accessible(
    browser: Any, pages: dict[str, Path], kind: str, width: int, scheme: str
) -> None:
    import axe_playwright_python

    page, problems = open_page(browser, pages[kind], width, scheme)
    assert problems == []
    assert page.locator("svg.marks").count() == page.locator("[data-figure]").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") == width  # only tables scroll sideways
    checker, _ = open_page(browser, pages[kind], width, scheme, bypass_csp=True)
    checker.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    checker.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    violations = checker.evaluate("axe.run()")["violations"]
    assert [(found["id"], found["nodes"][0]["html"]) for found in violations] == []


def test_tables_are_sorted_by_the_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = open_page(browser, pages["sweep"], 1400, "light")
    header = page.locator("section", has_text="The best first").locator("th", has_text="mean triplet accuracy").first
    column = header.evaluate("cell => cell.cellIndex")
    cells = f"section:has(table caption:text('The best first')) tbody tr td:nth-child({column + 1})"
    as_written = [float(cell) for cell in page.locator(cells).all_text_contents()]
    assert as_written == sorted(as_written, reverse=True)
    header.locator("button").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert [float(cell) for cell in page.locator(cells).all_text_contents()] == sorted(as_written)
    assert header.get_attribute("aria-sort") == "ascending"


def test_charts_follow_the_colours_of_the_system(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = open_page(browser, pages["sweep"], 1400, "light", bypass_csp=True)
    label = page.locator("svg.marks .role-axis-label text").first
    light = label.get_attribute("fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        f"document.querySelector('svg.marks .role-axis-label text').getAttribute('fill') !== '{light}'"
    )
