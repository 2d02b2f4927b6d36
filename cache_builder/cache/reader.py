"""Open a cache and read it; neither torch nor the trainer is needed.

    cache = open_cache("runs/demo/cache")
    cache.checkpoints                              ('checkpoint-100', 'checkpoint-200'), oldest first
    tokens, completion = cache.corpus.sequence(7)  u32 [T], bool [T]
    cache.losses("checkpoint-200")                 f64 [n], nats per sequence
    targets = cache.read("checkpoint-200", [7, 3]) every position of sequence 7, then of sequence 3

    rows ─▶ position_offsets ─▶ chunks, raw, the latest in memory ─▶ their columns ─▶ decode_records ─▶ Targets

Rows in any order; those whose positions share a chunk cost one read of it, as long as `memory_bytes` holds the chunks
in use. One `Cache` per thread or process; it can be pickled, and opened before a fork.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache_builder.cache.chunk_cache import ChunkMemory, chunks_of_spans
from cache_builder.cache.corpus_view import CachedCorpus
from cache_builder.errors import CacheDamagedError, CacheIncompleteError, CacheMismatchError, ConfigError, MissingError
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
    Manifest,
    ProbeGroup,
    checkpoint_key,
    entry_of,
    group_key,
    read_group,
)
from cache_builder.format.records import RecordLayout, decode_records, dequantise, normalise, records_spec
from cache_builder.format.zarr_shards import ArrayReader, parse_array_metadata
from cache_builder.positions import groups_of_rows, spans_of
from cache_builder.storage.base import Store
from cache_builder.storage.local import LocalStore
from cache_builder.storage.open import open_store

if TYPE_CHECKING:
    import zarr

    from cache_builder.cache.disk_cache import LocalCopy
from cache_builder.targets.sparse import Targets

__all__ = ["Cache", "CachedCorpus", "Targets", "open_cache"]

DEFAULT_MEMORY_BYTES = 512 << 20
FETCH_THREADS = 16
"""Chunks of a distant cache that are read at once."""


class Cache:
    """One open cache; `open_cache` makes it."""

    def __init__(self, store: Store, memory_bytes: int, local_copy: tuple[Path, int] | None = None) -> None:
        self._store = store
        self.url = store.where("")
        self.manifest = read_manifest(store)
        self._memory = ChunkMemory(memory_bytes)
        self._is_far = not isinstance(store, LocalStore)
        copy = _open_copy(*local_copy, self.manifest.fingerprint) if local_copy and self._is_far else None
        sizes = store.sizes("")
        corpus = _group(store, CorpusGroup, CORPUS, sizes)
        if corpus is None:
            raise CacheIncompleteError(
                f"cache {self.url} has no corpus yet; run `footsteps cache build CONFIG` to its end"
            )
        self._corpus_bytes = sum(entry.bytes for entry in corpus.files.values())
        arrays = open_arrays(store, CORPUS, corpus.files, copy)
        self.corpus = CachedCorpus(arrays, self._memory, self.manifest.corpus.fingerprint)
        order = _group(store, CheckpointOrder, CHECKPOINTS, sizes)
        if order is None and any(key.startswith(f"{CHECKPOINTS}/") for key in sizes):
            raise CacheDamagedError(f"{store.where(group_key(CHECKPOINTS))} is damaged: the file is missing")
        self.begun: tuple[str, ...] = tuple(order.order if order else ())
        """Every checkpoint whose build was begun, oldest first."""
        self._groups: dict[str, CheckpointGroup] = {}
        self._arrays: dict[str, dict[str, ArrayReader]] = {}
        for name in self.begun:
            group = _group(store, CheckpointGroup, checkpoint_key(name), sizes)
            if group is not None:
                if group.identity.name != name:
                    where = store.where(group_key(checkpoint_key(name)))
                    raise CacheDamagedError(f"{where} is damaged: it is that of {group.identity.name!r}")
                self._groups[name] = group
                self._arrays[name] = open_arrays(store, checkpoint_key(name), group.files, copy)
                if self._arrays[name]["records"].spec != records_spec(self.manifest):
                    raise CacheDamagedError(f"{self.url}: the records of {name!r} do not have the manifest's layout")
        self._probe = _group(store, ProbeGroup, PROBE, sizes)
        if self._groups and self._probe is None:
            raise CacheDamagedError(f"{store.where(group_key(PROBE))} is damaged: the file is missing")
        self._probe_arrays = open_arrays(store, PROBE, self._probe.files, copy) if self._probe else {}
        self._layout = RecordLayout.of(self.manifest.targets)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The complete checkpoints, oldest first."""
        return tuple(name for name in self.begun if name in self._groups)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest; files about this cache quote it."""
        return self.manifest.fingerprint

    def check_tokenizer(self, fingerprint: str, size: int) -> None:
        """Refuse another tokenizer than the cache's.

        Raises:
            CacheMismatchError: fingerprint or size differ.
        """
        ours = self.manifest.tokenizer
        if (fingerprint, size) != (ours.fingerprint, ours.size):
            raise CacheMismatchError(
                f"cache {self.url} was built with tokenizer {ours.fingerprint[:12]}… of {ours.size:,} tokens, "
                f"got {fingerprint[:12]}… of {size:,}; use the same tokenizer or rebuild the cache"
            )

    def checkpoint(self, name: str) -> CheckpointGroup:
        """Return a checkpoint's identity, held-out loss and ledger.

        Raises:
            CacheIncompleteError: it is not there, or its build has not finished.
        """
        if name not in self._groups:
            state = "has begun but not finished building" if name in self.begun else "does not know"
            raise CacheIncompleteError(
                f"cache {self.url} {state} checkpoint {name!r}; complete are: {', '.join(self.checkpoints) or 'none'}; "
                "run `footsteps cache build CONFIG` to its end"
            )
        return self._groups[name]

    @property
    def corpus_bytes(self) -> int:
        """Bytes on disk of the corpus's arrays."""
        return self._corpus_bytes

    @property
    def probe_bytes(self) -> int:
        """Bytes on disk of the probe's rows and ids."""
        return sum(entry.bytes for entry in self._probe.files.values()) if self._probe else 0

    def checkpoint_bytes(self, name: str) -> int:
        """Return the bytes on disk of a checkpoint's arrays, without its zarr.json."""
        return sum(entry.bytes for entry in self.checkpoint(name).files.values())

    def losses(self, name: str) -> np.ndarray:
        """Return −Σ log p(gold) of every sequence's positions, f64 [n], in nats."""
        self.checkpoint(name)
        return self._arrays[name]["loss"].all()

    def held_out(self, name: str) -> float | None:
        """Return the mean negative log-likelihood per held-out position in nats; None where nothing was held out."""
        return self.checkpoint(name).held_out_loss

    def read(self, name: str, rows: Iterable[int]) -> Targets:
        """Return the targets of every position of `rows`, in their order.

        Raises:
            CacheIncompleteError: the checkpoint is not complete.
            CacheDamagedError: bytes that are needed are missing or not those that were committed.
        """
        return self.read_spans(name, spans_of(self.corpus.position_offsets, rows))

    def read_spans(self, name: str, spans: Sequence[tuple[int, int]]) -> Targets:
        """Return the targets of global positions [start, end) of each span, one after another."""
        self.checkpoint(name)
        planes = self._memory.gather(self._arrays[name]["records"], spans)
        return decode_records(self._layout, planes, self.manifest.tokenizer.size)

    def prefetch(self, name: str | None, rows: Iterable[int]) -> None:
        """Read into memory, several chunks at once, what `rows` need of the corpus and of a checkpoint.

        Where the cache is on this machine's disk nothing is done: reads wait for nothing there.
        """
        if not self._is_far:
            return
        rows = list(rows)
        wanted = self.corpus.chunks_of(rows)
        if name is not None:
            self.checkpoint(name)
            spans = spans_of(self.corpus.position_offsets, rows)
            wanted += chunks_of_spans(self._arrays[name]["records"], spans)
        self._memory.fetch(wanted, FETCH_THREADS)

    def row_chunks(self) -> np.ndarray:
        """Return the chunk in which each row's positions begin, i64 [n], for an order that reads whole chunks."""
        return groups_of_rows(self.corpus.position_offsets, self.manifest.layout.chunk_positions)

    @property
    def probe_rows(self) -> np.ndarray:
        """Rows of the probe's sequences, i64 [P], rising."""
        return self._probe_array("rows").all()

    @property
    def probe_ids(self) -> np.ndarray:
        """Ids on which the probe's positions are compared, i64 [M, R]; position order as of `read(…, probe_rows)`."""
        return np.ascontiguousarray(self._probe_array("ids").all().T.astype(np.int64))

    def probe_logp(self, name: str) -> np.ndarray:
        """Return a checkpoint's log-probabilities on `probe_ids`, f32 [M, R]."""
        return self._probe_target(name)[0]

    def probe_log_tail(self, name: str) -> np.ndarray:
        """Return the log of a checkpoint's mass outside `probe_ids`, f32 [M]."""
        return self._probe_target(name)[1]

    def shard_targets(self, name: str) -> Iterator[Targets]:
        """Yield all targets of a checkpoint in order, a chunk at a time, without keeping any."""
        self.checkpoint(name)
        for planes in self._arrays[name]["records"].chunks():
            yield decode_records(self._layout, planes, self.manifest.tokenizer.size)

    def zarr(self, name: str) -> "zarr.Group":
        """Open a checkpoint's arrays in plain zarr-python, read-only: records, loss, probe_logp, probe_log_tail.

        They are the stored bytes, as docs/format.md has them; no ledger is consulted while they are read.

        Raises:
            CacheIncompleteError: the checkpoint is not complete.
            ConfigError: zarr is not installed, or cannot open the cache's URL.
        """
        from cache_builder.cache.plain_zarr import open_plain

        self.checkpoint(name)
        return open_plain(self._store, checkpoint_key(name))

    def _probe_target(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        self.checkpoint(name)
        code_RM = self._arrays[name]["probe_logp"].all()
        logp_MR = np.ascontiguousarray(dequantise(code_RM, self.manifest.targets.logp_steps_per_nat).T)
        return normalise(logp_MR, self._arrays[name]["probe_log_tail"].all())

    def _probe_array(self, name: str) -> ArrayReader:
        if self._probe is None:
            raise CacheIncompleteError(
                f"cache {self.url} has no probe yet; run `footsteps cache build CONFIG` to its end"
            )
        return self._probe_arrays[name]


def open_cache(
    url: str, *, memory_bytes: int = DEFAULT_MEMORY_BYTES, local_copy: tuple[Path, int] | None = None
) -> Cache:
    """Open a cache in a folder or at an fsspec URL, checking its ledgers against the files that are there.

    Args:
        memory_bytes: decoded chunks that are held at most.
        local_copy: a folder of this machine for chunks of a cache at a URL, and how many bytes it may take.

    Raises:
        MissingError: there is no cache.
        CacheMismatchError: its format is newer than this program.
        CacheDamagedError: a file is missing or has another size than was committed.
        CacheIncompleteError: the build was stopped before its corpus was stored.
        CacheWriteError: the folder of the local copy cannot be used.
    """
    return Cache(open_store(str(url)), memory_bytes, local_copy)


def read_manifest(store: Store) -> Manifest:
    """Return a cache's manifest, or refuse what is not one."""
    if not store.exists(ROOT):
        if store.exists(ARRIVING):
            raise CacheIncompleteError(
                f"{store.where('')} holds part of a copy of a cache; give the `footsteps cache push` or `pull` that "
                "was bringing it again"
            )
        raise MissingError(f"no cache at {store.where('')}; `footsteps cache build CONFIG` makes one")
    return read_group(store, Manifest, "")


def open_arrays(store: Store, group: str, files: Ledger, copy: "LocalCopy | None" = None) -> dict[str, ArrayReader]:
    """Open every array of a group that its ledger names; chunks are read through `copy`, where there is one."""
    arrays: dict[str, ArrayReader] = {}
    chunks = store if copy is None else copy.of_group(store, group, files)
    for file in files:
        if file.endswith("/zarr.json"):
            name = file.removesuffix("/zarr.json")
            key = f"{group}/{file}"
            metadata = store.read(key)
            if entry_of(metadata) != files[file]:
                raise CacheDamagedError(f"{store.where(key)} is damaged: it is not the file that was committed")
            spec, _ = parse_array_metadata(metadata, store.where(key))
            crcs = [files[f"{name}/{spec.shard_key(shard)}"].chunk_crc32c or [] for shard in range(spec.n_shards)]
            arrays[name] = ArrayReader(chunks, f"{group}/{name}", spec, crcs.__getitem__)
    return arrays


def _open_copy(folder: Path, limit_bytes: int, fingerprint: str) -> "LocalCopy":
    try:
        # Imported here, because reading a cache must not need `fcntl`.
        from cache_builder.cache.disk_cache import LocalCopy
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot keep a copy of the cache in {folder}: this system has no file locks ({error}); "
            "set cache.local_copy_bytes to 0"
        ) from None
    return LocalCopy(folder, limit_bytes, fingerprint)


def _group(store: Store, schema: type[Group], group: str, sizes: dict[str, int]) -> Group | None:
    """Read a group's attributes, if it is complete, and compare its ledger with the files' sizes."""
    if group_key(group) not in sizes:
        return None
    body = read_group(store, schema, group)
    files: Ledger = getattr(body, "files", {})
    for file, entry in files.items():
        found = sizes.get(f"{group}/{file}")
        if found != entry.bytes:
            state = "the file is missing" if found is None else f"{found:,} bytes, {entry.bytes:,} were committed"
            raise CacheDamagedError(f"{store.where(f'{group}/{file}')} is damaged: {state}")
    return body
