"""Reading a cache needs neither what trains and builds, nor what only some systems have."""

import subprocess
import sys

from tests.support.paths import ROOT

READ = """
import sys
{before}
from cache_builder import open_cache
from cache_builder.cache.info import describe
from cache_builder.cache.verify import verify_cache
from cache_builder.storage.open import open_store

folder = "tests/fixtures/cache_v1"
cache = open_cache(folder)
name = cache.checkpoints[-1]
targets = cache.read(name, range(len(cache.corpus)))
assert len(targets) == cache.corpus.n_positions > 0
assert describe(cache)["checkpoints"]
assert not verify_cache(open_store(folder)).damaged
{after}
"""
HEAVY = ("torch", "transformers", "accelerate", "datasets", "pyarrow", "pandas", "rich", "huggingface_hub", "fsspec")


def run(program: str) -> str:
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_reading_imports_nothing_that_only_building_and_training_need() -> None:
    loaded = run(READ.format(before="", after="print(*sys.modules)")).split()
    assert "numpy" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_reading_works_on_a_system_without_file_locks_and_resource_usage() -> None:
    missing = "sys.modules['fcntl'] = sys.modules['resource'] = None  # importing them fails now"
    use = "import cache_builder.memory, cache_builder.steps, cache_builder.config"
    run(READ.format(before=missing, after=use))


def test_a_copy_on_disk_is_refused_by_name_on_a_system_without_file_locks(tmp_path: object) -> None:
    program = f"""
import sys
sys.modules["fcntl"] = None
from pathlib import Path
import fsspec
from cache_builder import open_cache
from cache_builder.errors import ConfigError
fsspec.filesystem("memory").put("tests/fixtures/cache_v1/", "/cache/", recursive=True)
assert open_cache("memory://cache").checkpoints
try:
    open_cache("memory://cache", local_copy=(Path({str(tmp_path)!r}), 1 << 20))
except ConfigError as error:
    print(error)
"""
    assert "no file locks" in run(program) and "cache.local_copy_bytes" in run(program)
