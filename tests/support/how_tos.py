"""The changes that docs/extending.md describes, made in a copy of the code."""

import re
import shutil
from pathlib import Path

from tests.support.paths import ROOT

COPIED = ("cache_builder", "trainer", "tests", "tools", "docs", "pyproject.toml")


def copy_code(folder: Path) -> Path:
    """Copy what a how-to may change."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "images"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def follow(section: str, tree: Path) -> set[str]:
    """Make the changes of a section of docs/extending.md in a copy; return the files that it names."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    changed = set()
    for name, hunk in re.findall(r"```diff\n--- (\S+)\n(.*?)```", text, re.DOTALL):
        lines = hunk.splitlines()
        before = "\n".join(line[1:] for line in lines if line[:1] != "+") + "\n"
        after = "\n".join(line[1:] for line in lines if line[:1] != "-") + "\n"
        content = (tree / name).read_text(encoding="utf-8")
        assert content.count(before) == 1, f"{name} has {content.count(before)} places like\n{before}"
        (tree / name).write_text(content.replace(before, after), encoding="utf-8")
        changed.add(name)
    return changed
