"""Write tests/fixtures/cache_v1 and cache_v3, the caches of these format versions that later programs must still open.

    python -m tools.make_fixture_cache

It writes what is not there: a fixture that is rewritten proves nothing. What the tests expect is recomputed from
`FIXTURE` and `FIXTURE_V3`.
"""

from dataclasses import replace
from pathlib import Path

from cache_builder.storage.local import LocalStore
from tools.synthetic_cache import Synthetic, write_synthetic_cache

FOLDER = Path(__file__).parents[1] / "tests" / "fixtures" / "cache_v1"
FOLDER_V3 = FOLDER.with_name("cache_v3")
FIXTURE = Synthetic(
    sequences=12,
    vocabulary=100_000,
    top_k=4,
    tail_samples=2,
    checkpoints=("step-1", "step-2"),
    shard_positions=64,
    chunk_positions=16,
    mean_positions=10,
    probe_sequences=3,
    logp_steps_per_nat=256,
)

FIXTURE_V3 = replace(FIXTURE, tail_blocks=6)
"""The same with the tail's mass by blocks."""

if __name__ == "__main__":
    for folder, fixture in ((FOLDER, FIXTURE), (FOLDER_V3, FIXTURE_V3)):
        if not folder.exists():
            write_synthetic_cache(LocalStore(folder), fixture)
