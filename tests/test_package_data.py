"""What lies beside the code travels with it: each such file is named in pyproject's package data."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DATA = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]


@pytest.mark.parametrize("package", ["cache_builder", "trainer"])
def test_each_file_of_a_package_that_is_no_code_is_package_data(package: str) -> None:
    listed = {path for pattern in DATA[package] for path in (ROOT / package).glob(pattern)}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", package]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {ROOT / name for name in tracked if Path(name).suffix != ".py"} == listed


@pytest.mark.parametrize("package", ["cache_builder", "trainer"])
def test_each_folder_of_code_is_a_package(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
