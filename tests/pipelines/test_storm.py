"""Through a storm nothing that was committed is lost, and the cache is that of a calm day.

FOOTSTEPS_STORM=50 makes fifty storms of each kind, on Ray too.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

from cache_builder.storage.open import open_store
from tests.support.caches import Teaching, files_of
from tests.support.object_store import s3_bucket
from tests.support.paths import ROOT

LONG = int(os.environ.get("FOOTSTEPS_STORM", "0"))


SEQUENCES = 600
"""Of the teaching."""


long = pytest.mark.skipif(not LONG, reason="long: set FOOTSTEPS_STORM")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "place"),
    [
        pytest.param("parts", "object store", marks=pytest.mark.s3),
        pytest.param("parts", "folder", marks=long),  # test_build.py kills at chosen instants
        pytest.param("ray", "folder", marks=[long, pytest.mark.ray]),
    ],
)
def test_through_a_storm_nothing_committed_is_lost_and_the_bytes_are_those_of_a_calm_build(
    engine: str, place: str, teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    seeds = [str(seed) for seed in range(LONG or 1)]
    with s3_bucket() if place == "object store" else nullcontext(str(tmp_path)) as root:
        command = [sys.executable, "-m", "tests.support.storm", engine, teaching.folder, f"{root}/cache", *seeds]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300 + 600 * LONG,
        )
        assert done.returncode == 0, done.stderr
        died = sum((Counter(json.loads(line)) for line in done.stdout.splitlines() if line[:1] == "{"), Counter())
        print(died)
        assert died.total() >= len(seeds) * 2, died
        for seed in seeds:
            store = open_store(f"{root}/cache-{seed}")
            assert {key: store.read(key) for key in store.sizes("")} == files_of(built), seed
