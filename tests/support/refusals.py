"""How a crafted cache is used up: read, verified, copied; each refusal is a user's error and takes little memory."""

import functools
import tempfile
import tracemalloc
from pathlib import Path

from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import VERIFY_BYTES, verify_cache
from cache_builder.errors import UserError
from cache_builder.sharing.copy_plan import plan_copy
from cache_builder.storage.local import LocalStore
from tests.support.crafted import everything, write_honest

CHECKPOINT = "checkpoints/step-2"
ARRAYS = {
    "corpus": ["tokens", "completion", "token_offsets", "position_offsets", "sample_ids", "sample_id_offsets"],
    "probe": ["rows", "ids"],
    CHECKPOINT: ["records", "loss", "probe_logp", "probe_log_tail"],
}
EVERY_ARRAY = [(group, name) for group, names in ARRAYS.items() for name in names]
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
    """Return `refusals` that took at most twice the memory of an honest cache's uses, and verify's one block."""
    allowed = 2 * _honest_bytes() + VERIFY_BYTES  # of a file of any length, by which its digest is taken
    found, peak = _traced(folder)
    assert peak <= allowed, f"{peak:,} bytes, of {allowed:,}"
    return found


@functools.cache
def _honest_bytes() -> int:
    """Return what the uses of an honest cache need at most, once all is imported that they import."""
    with tempfile.TemporaryDirectory() as folder:
        write_honest(Path(folder) / "cache", tail_blocks=8)
        refusals(Path(folder) / "cache")
        found, peak = _traced(Path(folder) / "cache")
    assert not found
    return peak


def _traced(folder: Path) -> tuple[list[str], int]:
    tracemalloc.start()
    try:
        return refusals(folder), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
