"""The changes that docs/extending.md describes, made in a copy of the code."""

import re
import shutil
from pathlib import Path

from tests.support.paths import ROOT

COPIED = ("cache_builder", "trainer", "tests", "tools", "docs", "pyproject.toml")
LEFT_OUT = ("__pycache__", "images", ".pytest_cache", ".hypothesis")


def copy_code(folder: Path) -> Path:
    """Copy what a how-to may change."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def follow(section: str, tree: Path) -> set[str]:
    """Make the changes of a section of docs/extending.md in a copy; return the files that it names."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    changed = set()
    for source, name in re.findall(r"```sh\ncp (\S+) (\S+)\n```", text):
        assert not (tree / name).exists()
        shutil.copy(tree / source, tree / name)
        changed.add(name)
    for name, hunk in re.findall(r"```diff\n--- (\S+)\n(.*?)```", text, re.DOTALL):
        _apply(tree / name, hunk.splitlines())
        changed.add(name)
    return changed


def changed_files(tree: Path) -> set[str]:
    """Return the files of a copy that are not as they were copied, are new, or are gone."""
    before, now = _contents(ROOT), _contents(tree)
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}


def _apply(path: Path, lines: list[str]) -> None:
    before = "".join(line[1:] + "\n" for line in lines if line[:1] != "+")
    after = "".join(line[1:] + "\n" for line in lines if line[:1] != "-")
    if not before:
        assert not path.exists(), f"{path} is there already"
        path.write_text(after, encoding="utf-8")
        return
    content = path.read_text(encoding="utf-8")
    assert content.count(before) == 1, f"{path} has {content.count(before)} places like\n{before}"
    path.write_text(content.replace(before, after), encoding="utf-8")


def _contents(tree: Path) -> dict[str, bytes]:
    files = [
        path for name in COPIED for path in ((tree / name).rglob("*") if (tree / name).is_dir() else [tree / name])
    ]
    inside = {path.relative_to(tree): path for path in files if path.is_file()}
    return {name.as_posix(): path.read_bytes() for name, path in inside.items() if not {*name.parts} & {*LEFT_OUT}}
