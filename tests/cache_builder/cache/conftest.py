"""An honest cache, and copies of it to craft; a test that crafts one may not wait."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crafted import Crafted, write_honest


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "cache"
    write_honest(folder)
    return folder


@pytest.fixture
def crafted(honest: Path, tmp_path: Path) -> Iterator[Crafted]:
    signal.alarm(30)  # reading a pipe waits
    yield Crafted(Path(shutil.copytree(honest, tmp_path / "cache")))
    signal.alarm(0)
