"""The docs site: a page for every setting and command, and no link that leads nowhere."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.browser import Browser, browse
from tests.support.paths import ROOT
from tools.docs_site import relinked, write_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_site(folder)
    return folder


def test_every_link_of_the_site_leads_to_a_page_or_picture_of_it(site: Path) -> None:
    docs = site / "docs"
    for page in docs.rglob("*.md"):
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            assert "://" in target or (page.parent / target).is_file(), (page.name, target)


def test_every_page_is_in_the_navigation_once(site: Path) -> None:
    configured = re.findall(r'"([\w/.-]+\.md)"', (site / "zensical.toml").read_text())
    assert sorted(configured) == sorted(
        path.relative_to(site / "docs").as_posix() for path in (site / "docs").rglob("*.md")
    )


def test_the_reference_has_settings_commands_and_functions(site: Path) -> None:
    pages = {page.stem: page.read_text() for page in (site / "docs" / "reference").iterdir()}
    assert "## `[sft.teacher]`" in pages["settings"] and "**`epochs_per_stage`**" in pages["settings"]
    assert "**`save_strategy`**  \nset save_steps" in pages["settings"]
    assert "## footsteps cache build" in pages["commands"] and "--quick" in pages["commands"]
    assert (
        "### `trainer.loss.distillation_loss`" in pages["python"]
        and "### `cache_builder.open_cache`" in pages["python"]
    )


def test_every_picture_has_a_text() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"!\[\s*\]\(", page.read_text()), page.name


def test_a_link_to_what_the_site_has_not_keeps_its_words(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("")
    text = "[configs](../configs), [a](docs/a.md#x), [far](https://example.org), ![p](images/none.png)"
    assert relinked(text, Path("index.md"), tmp_path) == "configs, [a](a.md#x), [far](https://example.org), p"


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The built site's address."""
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "zensical.toml"]
    done = subprocess.run(build, cwd=site, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site / "site")))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browse(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
@pytest.mark.parametrize("page", ["index", "tutorial", "clusters", "notebooks/schedule", "reference/settings"])
def test_a_page_fits_its_window_follows_the_theme_and_has_no_serious_barrier(
    browser: Browser, served: str, page: str, width: int, dark: bool
) -> None:
    browser.emulate(width, 900, dark=dark)
    browser.open(f"{served}/{page}.html")
    browser.run("localStorage.clear()")  # the theme of the page before
    browser.open(f"{served}/{page}.html")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return document.body.dataset.mdColorScheme") == ("slate" if dark else "default")
    assert browser.barriers() == []
