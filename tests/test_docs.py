"""The README names every file, and no link in the docs is dead."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize(
    "folder",
    ["cache_builder", *(f"cache_builder/{name}" for name in ("sources", "sharing", "interchange")), "trainer", "tools"],
)
def test_the_readme_has_a_phrase_for_every_file(folder: str) -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("## Where things are") :]
    missing = [
        path.name
        for path in sorted((ROOT / folder).glob("*.py"))
        if path.name != "__init__.py" and not re.search(rf"^ +{re.escape(path.name)} +\S", tree, re.MULTILINE)
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not dead
