"""The report's page as people meet it: opened, clicked through, on a desk and on a phone, in light and in dark."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser, browse
from tests.support.run_folder import METHODS, make_run
from trainer.report.page import write_report

pytestmark = pytest.mark.browser

DESK, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    first = make_run(folder / "demo", seeds=(0,))
    second = make_run(folder / "<script>alert(1)", methods=("td",), seeds=(0,), ids="<script>alert({})</script>")
    return write_report([first, second], folder / "report")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browse(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(started: Browser, page: Path) -> Browser:
    started.emulate(*DESK, dark=False)
    started.open(page)
    return started


def test_every_figure_is_drawn_and_the_console_stays_silent(browser: Browser) -> None:
    browser.run("for (const image of document.images) image.loading = 'eager'")
    browser.run("for (const part of document.querySelectorAll('[hidden]')) part.hidden = false")
    sizes = browser.run(
        "return Promise.all([...document.images].map(image => image.decode().then(() => image.naturalWidth)))"
    )
    assert len(sizes) == 1 + 11 + 10, "one of both runs; the second run has no scheduled method"
    assert all(size > 300 for size in sizes)
    assert browser.complaints() == []


def test_a_click_shows_another_run_and_hides_the_first(browser: Browser) -> None:
    first, second = browser.find_all("article")
    assert first.displayed and not second.displayed
    buttons = browser.find_all("[data-switch=run] button")
    assert [button.text for button in buttons] == ["demo", "<script>alert(1)"]
    buttons[1].click()
    assert second.displayed and not first.displayed
    assert buttons[1].attribute("aria-pressed") == "true"


def test_a_click_shows_the_last_checkpoints(browser: Browser) -> None:
    best, last = browser.find_all("[data-group=demo-which]")
    assert best.displayed and not last.displayed
    browser.find("[data-switch=demo-which] button[data-show=last]").click()
    assert last.displayed and not best.displayed


def test_a_click_on_a_head_sorts_by_number_and_again_turns_it(browser: Browser) -> None:
    head = browser.find("[data-group=demo-which] thead th:nth-child(5) button")
    column = "[data-group=demo-which][data-panel=best] tbody td:nth-child(5)"
    head.click()
    falling = [float(cell.text) for cell in browser.find_all(column)]
    head.click()
    rising = [float(cell.text) for cell in browser.find_all(column)]
    assert len(falling) == 2 + len(METHODS)
    assert falling == sorted(falling, reverse=True) and rising == sorted(rising)


def test_the_contents_lead_to_their_sections_and_the_numbers_unfold(browser: Browser) -> None:
    for link in browser.find_all("article:first-of-type nav.contents a"):
        link.click()
        target = (link.attribute("href") or "").rpartition("#")[2]
        assert browser.run(f"return document.getElementById({target!r}) !== null"), target
    assert "identity error" in browser.find("#demo-subdomains details.data table").text
    summary = browser.find("#demo-weights details.data summary")
    table = browser.find("#demo-weights details.data table")
    assert not table.displayed
    summary.click()
    assert table.displayed


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_page_fits_its_window_and_follows_the_theme(
    browser: Browser, page: Path, size: tuple[int, int], dark: bool
) -> None:
    browser.emulate(*size, dark=dark)
    browser.open(page)
    assert browser.run("return document.documentElement.scrollWidth") <= size[0]
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in background.strip("rgb()").split(",")]
    assert (max(channels) < 80) if dark else (min(channels) > 200)
    shown = browser.run("return document.images[0].currentSrc === document.images[0].src")
    assert shown == (size == DESK), "a phone gets the narrow drawing"
    if folder := os.environ.get("FOOTSTEPS_SCREENSHOTS"):
        browser.run("for (const image of document.images) image.loading = 'eager'")
        browser.run("return Promise.all([...document.images].filter(i => i.offsetParent).map(image => image.decode()))")
        name = f"report-{'dark' if dark else 'light'}-{size[0]}.png"
        Path(folder, name).write_bytes(browser.screenshot())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_on_the_page_unfolded_is_a_serious_barrier(
    browser: Browser, page: Path, size: tuple[int, int], dark: bool
) -> None:
    browser.emulate(*size, dark=dark)
    browser.open(page)
    browser.run("for (const part of document.querySelectorAll('[hidden]')) part.hidden = false")
    browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.barriers() == []


def test_without_script_both_runs_and_both_tables_are_on_the_page(started: Browser, page: Path) -> None:
    started.devtools("Emulation.setScriptExecutionDisabled", value=True)
    try:
        started.open(page)
        assert all(article.displayed for article in started.find_all("article"))
        assert all(panel.displayed for panel in started.find_all("[data-group=demo-which]"))
    finally:
        started.devtools("Emulation.setScriptExecutionDisabled", value=False)
