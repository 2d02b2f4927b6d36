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
from cache_builder.cache.opening import Groups, open_checkpoint, open_copy, open_corpus, open_probe, read_manifest
from cache_builder.errors import CacheDamagedError, CacheIncompleteError, CacheMismatchError
from cache_builder.format.manifest import (
    CORPUS,
    PROBE,
    CheckpointGroup,
    CorpusGroup,
    ProbeGroup,
    checkpoint_key,
    group_key,
)
from cache_builder.format.records import RecordLayout, decode_records, dequantise, normalise
from cache_builder.format.zarr_shards import ArrayReader
from cache_builder.positions import counts_of, spans_of
from cache_builder.storage.base import Store
from cache_builder.storage.local import LocalStore
from cache_builder.storage.open import open_store
from cache_builder.targets.sparse import Targets

if TYPE_CHECKING:
    import zarr

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
        copy = open_copy(*local_copy, self.manifest.fingerprint) if local_copy and self._is_far else None
        groups = Groups(store, self.manifest)
        corpus, self._probe = groups.read(CorpusGroup, CORPUS), groups.read(ProbeGroup, PROBE)
        if corpus is None:
            raise CacheIncompleteError(
                f"cache {self.url} has no corpus yet; run `footsteps cache build CONFIG` to its end"
            )
        self._corpus_bytes = sum(entry.bytes for entry in corpus.files.values())
        self.corpus = CachedCorpus(
            open_corpus(store, self.manifest, corpus, copy), self._memory, self.manifest, self.url
        )
        self.begun = groups.order()
        """Every checkpoint whose build was begun, oldest first."""
        found = {name: groups.checkpoint(name) for name in self.begun}
        self._groups = {name: group for name, group in found.items() if group is not None}
        self.checkpoints = tuple(self._groups)
        """The complete checkpoints, oldest first."""
        if self._groups and self._probe is None:
            raise CacheDamagedError(f"{store.where(group_key(PROBE))} is damaged: the file is missing")
        self._probe_arrays = open_probe(store, self.manifest, self._probe, copy) if self._probe else {}
        self._arrays = {
            name: open_checkpoint(store, self.manifest, group, self._probe_arrays["ids"].spec, copy)
            for name, group in self._groups.items()
        }
        self._layout = RecordLayout.of(self.manifest.targets)
        self._whole = self.manifest.imported is None

    @property
    def unfinished(self) -> list[str]:
        """The checkpoints whose build has begun and not finished, oldest first."""
        return [name for name in self.begun if name not in self._groups]

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
        losses = self._arrays[name]["loss"].all()
        # A loss is never below zero but for rounding; one that an imported cache does not know is a NaN.
        known = losses if self.manifest.imported is None else losses[~np.isnan(losses)]
        if not (np.isfinite(known) & (known >= -1e-3)).all():
            raise CacheDamagedError(f"{self._where(name)} is damaged: it holds a loss that is no sum of −log p")
        return losses

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
        return self._decode(name, planes)

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

    @property
    def probe_rows(self) -> np.ndarray:
        """Rows of the probe's sequences, i64 [P], rising."""
        rows = self._probe_array("rows").all()
        rising = (rows[1:] > rows[:-1]).all() and (not rows.size or (rows[0] >= 0 and rows[-1] < len(self.corpus)))
        positions = counts_of(self.corpus.position_offsets, rows).sum() if rising else -1
        if positions != self._probe_array("ids").spec.length:
            raise CacheDamagedError(
                f"{self._store.where(PROBE)}/rows is damaged: they are not rising rows of the corpus, with the "
                "positions of its ids"
            )
        return rows

    @property
    def probe_ids(self) -> np.ndarray:
        """Ids on which the probe's positions are compared, i64 [M, R]; position order as of `read(…, probe_rows)`."""
        return np.ascontiguousarray(self._probe_array("ids").all().T.astype(np.int64))

    def check_probe(self) -> None:
        """Read the probe's rows and ids, which checks them."""
        _ = self.probe_rows, self.probe_ids

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
            yield self._decode(name, planes)

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

    def _decode(self, name: str, planes: np.ndarray) -> Targets:
        try:
            targets = decode_records(self._layout, planes, self.manifest.tokenizer.size, self._whole)
        except CacheDamagedError as error:
            raise CacheDamagedError(f"{self._where(name)} is damaged: {error}") from None
        return targets

    def _where(self, name: str) -> str:
        return self._store.where(checkpoint_key(name))

    def _probe_target(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        self.checkpoint(name)
        code_RM = self._arrays[name]["probe_logp"].all()
        logp_MR = np.ascontiguousarray(dequantise(code_RM, self.manifest.targets.logp_steps_per_nat).T)
        log_tail_M = self._arrays[name]["probe_log_tail"].all()
        try:
            return normalise(logp_MR, log_tail_M, self.manifest.targets.logp_steps_per_nat)
        except CacheDamagedError as error:
            raise CacheDamagedError(f"{self._where(name)}/probe_logp is damaged: {error}") from None

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
