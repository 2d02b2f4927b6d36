"""A cache built by several hosts that share nothing but the place where it is: a folder, or an object store."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from cache_builder.storage.open import open_store
from tests.support.caches import Teaching, files_of
from tests.support.hosts import address, network
from tests.support.object_store import s3_bucket
from tests.support.paths import ROOT

SEQUENCES = 240
"""Of the teaching."""


@pytest.fixture(scope="module")
def apart() -> Iterator[bool]:
    """Whether hosts have networks and process ids of their own, or are only processes."""
    with network(4) as made:
        yield made


def run_hosts(scenario: str, teaching: Teaching, folder: Path, cache: str) -> tuple[dict[str, object], dict[str, str]]:
    """Return what came of a scenario, and what each host said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hosts", scenario, teaching.folder, folder, cache],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = {path.parent.name: " ".join(path.read_text().split()) for path in sorted(folder.glob("*/said"))}
    assert done.returncode == 0, (done.stderr, said)
    return json.loads(done.stdout.splitlines()[-1]), said


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        pytest.param("object store", marks=pytest.mark.s3),
        pytest.param(
            "folder",  # which the hosts under torchrun share below
            marks=pytest.mark.skipif("FOOTSTEPS_STORM" not in os.environ, reason="long: set FOOTSTEPS_STORM"),
        ),
    ],
)
def test_a_job_array_on_hosts_that_share_only_the_store_loses_one_and_ends_with_the_same_bytes(
    place: str, teaching: Teaching, built: Path, apart: bool, tmp_path: Path
) -> None:
    with s3_bucket(address(-1)) if place == "object store" else nullcontext(str(tmp_path)) as root:
        cache = f"{root}/cache"
        codes, said = run_hosts("array", teaching, tmp_path / "hosts", cache)
        assert codes == {"refused": 2, "builders": [0, -9, 0, 0]}, said
        store = open_store(cache)
        assert {key: store.read(key) for key in store.sizes("")} == files_of(built)
        assert [path.name for path in tmp_path.glob("cache/.*")] == []
    assert "part 0/3 cannot be built now, because another builder is at work" in said["3"]
    if apart:
        assert "@host-0, process 1, part 0/3" in said["3"]
        assert ("waiting for root@host-1" in said["3"]) == (place == "object store")


@pytest.mark.slow
def test_torchrun_on_two_hosts_that_share_only_a_folder_gives_the_same_bytes(
    teaching: Teaching, built: Path, apart: bool, tmp_path: Path
) -> None:
    codes, said = run_hosts("torchrun", teaching, tmp_path / "hosts", str(tmp_path / "cache"))
    assert codes == {"hosts": [0, 0]}, said
    assert files_of(tmp_path / "cache") == files_of(built)
    assert "step-1:" in said["0"]  # each has built its share
    assert "step-2:" in said["1"]
