"""The pages name every room, and nothing that is not there."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), ROOT / "llms.txt", *(ROOT / "docs").glob("*.md")])
ROOMS = sorted(
    path.parent.relative_to(ROOT).as_posix()
    for package in ("cache_builder", "trainer")
    for path in (ROOT / package).glob("*/__init__.py")
)
FILES = {path.name for folder in ("cache_builder", "trainer", "tests", "tools") for path in (ROOT / folder).rglob("*")}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_phrase_in_the_tree_and_a_row_in_the_change_map(room: str) -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    package, name = room.split("/")
    tree = page[page.index(f"\n{package}/ ") :]
    assert re.search(rf"^  {name}/ +\S", tree, re.MULTILINE)
    assert re.search(rf"^\|.*`{room}/", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not dead


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    quoted = re.findall(r"`([\w./-]+)`", text)
    paths = [name for name in quoted if re.match(r"(cache_builder|trainer|tests|tools|docs|configs)/", name)]
    modules = [name for name in quoted if re.fullmatch(r"(cache_builder|trainer|tools|tests)(\.\w+)+", name)]
    modules += re.findall(r"python -m ((?:trainer|tools)(?:\.\w+)+)\b(?!\*)", text)
    modules = [name.replace(".", "/") for name in modules if name.split(".")[-1] != "md"]
    paths += [name if (ROOT / name / "__init__.py").is_file() else f"{name}.py" for name in modules]
    missing = [name for name in paths if not (ROOT / name).exists()]
    missing += [name for name in quoted if re.fullmatch(r"\w+\.py", name) and name not in FILES]
    assert not missing


@pytest.mark.parametrize("front", ["README.md", "llms.txt"])
def test_the_front_leads_to_every_page(front: str) -> None:
    text = (ROOT / front).read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in text] == []


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "docs").glob("notebooks/*.ipynb")], ids=lambda page: page.name)
def test_no_page_installs_by_a_name_that_is_another_project_s(page: Path) -> None:
    assert not re.search(r"pip install ['\"\\]*footsteps\[", page.read_text())


def test_the_readme_is_short_and_has_its_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 150
    assert "\nmake demo " in readme and "\nmake test " in readme
