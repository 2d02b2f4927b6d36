"""Undo what is damaged in a cache, so that a build does it again; building is deterministic, so the bytes come back."""

from cache_builder import format as names
from cache_builder.errors import CacheDamagedError
from cache_builder.format import Manifest
from cache_builder.store import Store
from cache_builder.verify import verify_cache
from cache_builder.writer import CheckpointWriter


def take_back_damage(store: Store, manifest: Manifest) -> None:
    """Verify a cache and undo whatever is damaged, so that a build does it again; what is intact stays as it is.

    Raises:
        CacheDamagedError: the manifest, or a ledger, is damaged itself; the message says what to remove.
    """
    damaged = set(verify_cache(store).damaged)
    complete = {key.split("/")[1] for key in store.sizes(names.CHECKPOINTS) if key.endswith("/loss/zarr.json")}
    if any(key.startswith(f"{names.PROBE}/") for key in damaged):
        # New ids may differ, so every checkpoint is compared on them again.
        damaged |= {f"{names.checkpoint_key(name)}/probe_logp/zarr.json" for name in complete}
    for name in sorted(complete):
        if f"{names.checkpoint_key(name)}/zarr.json" in damaged:
            where = store.where(names.checkpoint_key(name))
            raise CacheDamagedError(f"the ledger of checkpoint {name!r} is damaged: remove {where} and build it again")
        if any(key.startswith(f"{names.checkpoint_key(name)}/") for key in damaged):
            CheckpointWriter(store, manifest, name).reopen(damaged)
    for group in (names.CORPUS, names.PROBE):
        if any(key.startswith(f"{group}/") for key in damaged):
            store.remove(f"{group}/zarr.json")
    if f"{names.CHECKPOINTS}/zarr.json" in damaged:
        store.remove(f"{names.CHECKPOINTS}/zarr.json")
    if names.ROOT in damaged:
        raise CacheDamagedError(f"{store.where(names.ROOT)} is damaged; restore it from a copy, or build another cache")
