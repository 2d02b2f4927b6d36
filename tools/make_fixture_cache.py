"""Write tests/fixtures/cache_v1, the cache of format version 1 that later programs must still open.

    python -m tools.make_fixture_cache

Never run it again for version 1: a fixture that is rewritten proves nothing. What the test expects is recomputed from
`FIXTURE`.
"""

from pathlib import Path

from cache_builder.storage.local import LocalStore
from tools.synthetic_cache import Synthetic, write_synthetic_cache

FOLDER = Path(__file__).parents[1] / "tests" / "fixtures" / "cache_v1"
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

if __name__ == "__main__":
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER} is there already; a fixture is never rewritten")
    write_synthetic_cache(LocalStore(FOLDER), FIXTURE)
