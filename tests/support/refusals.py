"""How a crafted cache is used up: read, verified, copied; each refusal is a user's error, and none takes memory."""

import tracemalloc
from pathlib import Path

from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.errors import UserError
from cache_builder.sharing.copy_plan import plan_copy
from cache_builder.storage.local import LocalStore
from tests.support.crafted import everything

CHECKPOINT = "checkpoints/step-2"
ARRAYS = {
    "corpus": ["tokens", "completion", "token_offsets", "position_offsets", "sample_ids", "sample_id_offsets"],
    "probe": ["rows", "ids"],
    CHECKPOINT: ["records", "loss", "probe_logp", "probe_log_tail"],
}
EVERY_ARRAY = [(group, name) for group, names in ARRAYS.items() for name in names]
MAX_BYTES = 48 << 20
"""An honest cache of this size needs 11 MiB, most of it imports' and decoded chunks'."""
HUGE = 10**12


def refusals(folder: Path) -> list[str]:
    """Read, verify and plan to copy a cache; return each one's refusal. Anything but a user's error is raised."""
    found = []
    for use in (
        lambda: everything(open_cache(str(folder))),
        lambda: plan_copy(LocalStore(folder), ()),
        lambda: found.extend(verify_cache(LocalStore(folder)).damaged.values()),
    ):
        try:
            use()
        except UserError as error:
            found.append(str(error))
    return found


def refusals_in_little_memory(folder: Path) -> list[str]:
    """Return `refusals` that took no more memory than those of an honest cache may."""
    tracemalloc.start()
    try:
        found = refusals(folder)
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    return found
