"""Find what a cache's place holds and hold it to the manifest; nothing of an array is read here but its description.

    zarr.json ─▶ manifest
    every file's size ─▶ zarr.json of a group ─▶ its ledger, each file of the size that it says
                      ─▶ zarr.json of its arrays ─▶ the schema (`format/schema.py`) ─▶ ArrayReader

A group's JSON may be no larger than all else in the cache and 1 MiB: a ledger is smaller than what it lists.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cache_builder.errors import CacheDamagedError, CacheIncompleteError, ConfigError, MissingError
from cache_builder.format.manifest import (
    ARRIVING,
    CHECKPOINTS,
    CORPUS,
    PROBE,
    ROOT,
    CheckpointGroup,
    CheckpointOrder,
    CorpusGroup,
    Group,
    Ledger,
    LedgerEntry,
    Manifest,
    ProbeGroup,
    checkpoint_key,
    entry_of,
    group_key,
    read_group,
)
from cache_builder.format.schema import (
    Specs,
    check_arrays,
    checkpoint_schema,
    corpus_schema,
    largest_values,
    probe_schema,
)
from cache_builder.format.zarr_shards import ArrayReader, ArraySpec, parse_array_metadata
from cache_builder.storage.base import Reads

if TYPE_CHECKING:
    from cache_builder.cache.disk_cache import LocalCopy

MAX_JSON_BYTES = 1 << 20
"""What a manifest and an array's description may have, and a group's beyond the bytes that it describes."""

IN_A_RUN = "cache"
"""The folder of a run that its cache is in, unless `cache.path` says otherwise."""

Arrays = dict[str, ArrayReader]


def read_manifest(store: Reads) -> Manifest:
    """Return a cache's manifest, or refuse what is not one."""
    size = store.size(ROOT)
    if size is None:
        if store.exists(ARRIVING):
            raise CacheIncompleteError(
                f"{store.where('')} holds part of a copy of a cache; give the `footsteps cache push` or `pull` that "
                "was bringing it again"
            )
        raise no_cache(store)
    check_json_size(store, ROOT, size)
    return read_group(store, Manifest, "")


def no_cache(store: Reads) -> MissingError:
    """Say that there is no cache, and where there is one if this is a run's folder."""
    if store.exists(f"{IN_A_RUN}/{ROOT}"):
        return MissingError(f"no cache at {store.where('')}, a run's folder; its cache is {store.where(IN_A_RUN)}")
    return MissingError(f"no cache at {store.where('')}; `footsteps cache build CONFIG` makes one")


class Groups:
    """The groups of one cache, as its place lists them."""

    def __init__(self, store: Reads, manifest: Manifest) -> None:
        self.store, self.manifest = store, manifest
        self.sizes = store.sizes("")
        self._all_bytes = sum(self.sizes.values())

    def read(self, schema: type[Group], group: str) -> Group | None:
        """Read a group's attributes, if it is complete, and compare its ledger with the files' sizes."""
        key = group_key(group)
        if key not in self.sizes:
            return None
        check_json_size(self.store, key, self.sizes[key], self._all_bytes - self.sizes[key])
        body = read_group(self.store, schema, group)
        files: Ledger = getattr(body, "files", {})
        for file, entry in files.items():
            problem = size_problem(self.sizes.get(f"{group}/{file}"), entry)
            if problem is not None:
                raise CacheDamagedError(f"{self.store.where(f'{group}/{file}')} is damaged: {problem}")
        return body

    def order(self) -> tuple[str, ...]:
        """Return every checkpoint whose build was begun, oldest first."""
        order = self.read(CheckpointOrder, CHECKPOINTS)
        if order is None and any(key.startswith(f"{CHECKPOINTS}/") for key in self.sizes):
            raise CacheDamagedError(f"{self.store.where(group_key(CHECKPOINTS))} is damaged: the file is missing")
        return tuple(order.order) if order else ()

    def checkpoint(self, name: str) -> CheckpointGroup | None:
        """Return a checkpoint's group; None while it is being built."""
        group = self.read(CheckpointGroup, checkpoint_key(name))
        if group is not None and group.identity.name != name:
            where = self.store.where(group_key(checkpoint_key(name)))
            raise CacheDamagedError(f"{where} is damaged: it is that of {group.identity.name!r}")
        return group


def size_problem(found: int | None, entry: LedgerEntry) -> str | None:
    """Say what is wrong with a file of so many bytes, None where it is missing, by its entry in the ledger."""
    if found is None:
        return "the file is missing"
    return None if found == entry.bytes else f"{found:,} bytes, {entry.bytes:,} were committed"


def open_corpus(store: Reads, manifest: Manifest, group: CorpusGroup, copy: "LocalCopy | None" = None) -> Arrays:
    """Open the arrays of the sequences; chunks are read through `copy`, where there is one."""
    return _open_arrays(store, manifest, CORPUS, group.files, lambda found: corpus_schema(manifest, found), copy)


def open_probe(store: Reads, manifest: Manifest, group: ProbeGroup, copy: "LocalCopy | None" = None) -> Arrays:
    """Open the probe's arrays."""
    return _open_arrays(store, manifest, PROBE, group.files, lambda found: probe_schema(manifest, group, found), copy)


def open_checkpoint(
    store: Reads, manifest: Manifest, group: CheckpointGroup, probe_ids: ArraySpec, copy: "LocalCopy | None" = None
) -> Arrays:
    """Open a checkpoint's arrays; `probe_ids` is what the probe's ids are."""
    key = checkpoint_key(group.identity.name)
    return _open_arrays(store, manifest, key, group.files, lambda found: checkpoint_schema(manifest, probe_ids), copy)


def open_copy(folder: Path, limit_bytes: int, fingerprint: str) -> "LocalCopy":
    """Open a copy of a distant cache's chunks on this machine's disk.

    Raises:
        ConfigError: this system has no file locks.
        CacheWriteError: the folder cannot be used.
    """
    try:
        # Imported here, because reading a cache must not need `fcntl`.
        from cache_builder.cache.disk_cache import LocalCopy
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot keep a copy of the cache in {folder}: this system has no file locks ({error}); "
            "set cache.local_copy_bytes to 0"
        ) from None
    return LocalCopy(folder, limit_bytes, fingerprint)


def _open_arrays(
    store: Reads,
    manifest: Manifest,
    group: str,
    files: Ledger,
    schema: Callable[[Specs], Specs],
    copy: "LocalCopy | None",
) -> Arrays:
    found = {name: _read_spec(store, group, name, files) for name in _array_names(files)}
    check_arrays(files, found, schema(found), lambda file: store.where(f"{group}/{file}"))
    chunks = store if copy is None else copy.of_group(store, group, files)
    arrays: Arrays = {}
    most = largest_values(manifest)
    for name, spec in found.items():
        crcs = [files[f"{name}/{spec.shard_key(shard)}"].chunk_crc32c or [] for shard in range(spec.n_shards)]
        arrays[name] = ArrayReader(chunks, f"{group}/{name}", spec, crcs.__getitem__, most.get(name))
    return arrays


def _array_names(files: Ledger) -> list[str]:
    """Return what a ledger names as arrays: folders directly below the group, whatever else it may say."""
    names = (file.removesuffix(f"/{ROOT}") for file in files if file.endswith(f"/{ROOT}"))
    return [name for name in names if name.isidentifier()]


def _read_spec(store: Reads, group: str, name: str, files: Ledger) -> ArraySpec:
    key, entry = f"{group}/{name}/{ROOT}", files[f"{name}/{ROOT}"]
    check_json_size(store, key, entry.bytes)
    metadata = store.read(key)
    if entry_of(metadata) != entry:
        raise CacheDamagedError(f"{store.where(key)} is damaged: it is not the file that was committed")
    return parse_array_metadata(metadata, store.where(key))[0]


def check_json_size(store: Reads, key: str, size: int, described_bytes: int = 0) -> None:
    """Refuse a file of JSON that is larger than what it describes and 1 MiB."""
    most = MAX_JSON_BYTES + described_bytes
    if size > most:
        raise CacheDamagedError(f"{store.where(key)} is damaged: {size:,} bytes of JSON, expected {most:,} at most")
