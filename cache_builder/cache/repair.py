"""Undo what is damaged in a cache, so that a build does it again; building is deterministic, so the bytes come back."""

from cache_builder.cache.verify import verify_cache
from cache_builder.cache.writer import CheckpointWriter
from cache_builder.errors import CacheDamagedError
from cache_builder.format.manifest import (
    CHECKPOINTS,
    CORPUS,
    PROBE,
    ROOT,
    Manifest,
    checkpoint_key,
)
from cache_builder.storage.base import Store


def take_back_damage(store: Store, manifest: Manifest) -> None:
    """Verify a cache and undo whatever is damaged, so that a build does it again; what is intact stays as it is.

    Raises:
        CacheDamagedError: the manifest, or a ledger, is damaged itself; the message says what to remove.
    """
    damaged = set(verify_cache(store).damaged)
    complete = {key.split("/")[1] for key in store.sizes(CHECKPOINTS) if key.endswith("/loss/zarr.json")}
    if any(key.startswith(f"{PROBE}/") for key in damaged):
        # New ids may differ, so every checkpoint is compared on them again.
        damaged |= {f"{checkpoint_key(name)}/probe_logp/zarr.json" for name in complete}
    for name in sorted(complete):
        if f"{checkpoint_key(name)}/zarr.json" in damaged:
            where = store.where(checkpoint_key(name))
            raise CacheDamagedError(f"the ledger of checkpoint {name!r} is damaged: remove {where} and build it again")
        if any(key.startswith(f"{checkpoint_key(name)}/") for key in damaged):
            CheckpointWriter(store, manifest, name).reopen(damaged)
    for group in (CORPUS, PROBE):
        if any(key.startswith(f"{group}/") for key in damaged):
            store.remove(f"{group}/zarr.json")
    if f"{CHECKPOINTS}/zarr.json" in damaged:
        store.remove(f"{CHECKPOINTS}/zarr.json")
    if ROOT in damaged:
        raise CacheDamagedError(f"{store.where(ROOT)} is damaged; restore it from a copy, or build another cache")
