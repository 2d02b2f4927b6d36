"""One process's part in a build: a checkpoint in memory, and the work that it is given, shard by shard.

    work ─▶ its checkpoint, unless it is in memory ─▶ a shard's targets ─▶ encoded and committed ─▶ … ─▶ probe pass
                                                      while the next one's targets are captured

Every scheduler builds with it: `build.py` in its own process, `ray_scheduler.py` in each of its actors.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cache_builder.build.pace import Pace, Watched
from cache_builder.build.recheck import recheck
from cache_builder.build.work_units import Work, probe_rows
from cache_builder.cache.opening import open_probe
from cache_builder.cache.writer import CheckpointWriter, write_probe
from cache_builder.capture.backend import Backend, Engine
from cache_builder.format.manifest import (
    PROBE,
    Manifest,
    ProbeGroup,
    read_group,
)
from cache_builder.format.records import quantise
from cache_builder.positions import rows_between
from cache_builder.sequences import NumberedSequences
from cache_builder.storage.base import Store
from cache_builder.targets.sparse import Targets


@dataclass
class Worker:
    """Runs checkpoints for a builder that holds the cache; one at a time is in memory."""

    engine: Engine
    store: Store
    manifest: Manifest
    locations: dict[str, str]
    """Where each checkpoint lies: a folder or a hub id, by name."""
    corpus: NumberedSequences
    held_out: NumberedSequences | None

    def __post_init__(self) -> None:
        self._backend: Backend | None = None
        self.pace = Pace()
        self.corpus = Watched(self.corpus, self.pace)
        if self.held_out is not None:
            self.held_out = Watched(self.held_out, self.pace)

    def load(self, name: str) -> Backend:
        """Bring a checkpoint to memory, in place of another, and return it.

        Raises:
            ModelError: it cannot be loaded, or does not fit the tokenizer.
        """
        if self._backend is None or self._backend.identity.name != name:
            self.unload()
            self._backend = self.engine.load(name, self.locations[name])
        return self._backend

    def unload(self) -> None:
        """Give a checkpoint's memory back, except what the engine keeps for the next one."""
        if self._backend is not None:
            self._backend.release()
            self._backend = None

    def fix_probe(self, anchor: str) -> None:
        """Choose the probe's sequences, and their ids from what the anchor says."""
        backend, options = self.load(anchor), self.manifest.probe
        rows = self._probe_rows()
        write_probe(self.store, backend.identity, rows, backend.probe_ids(self.corpus, rows, options.top_k))

    def build(self, name: str, work: Work) -> Iterator[int]:
        """Do the work, which is one checkpoint's; yield a shard's number of positions once it is committed.

        Raises:
            CacheMismatchError: the checkpoint was begun with other weights.
            ModelError: its logits are not finite, it cannot be loaded, or a sample of a shard differs when run alone.
            CacheWriteError: a file could not be written; what was committed is safe.
        """
        backend, writer = self.load(name), self.writer(name)
        with self.store.exclusive():
            writer.begin(backend.identity)
            writer.agree_on_batches(backend.agree_on_batches)
        rows = _RowsDone(self.corpus.position_offsets, self._probe_rows() if work.probe_pass else None)
        with ThreadPoolExecutor(1) as pool:
            pending: Future[tuple[int, int]] | None = None
            for shard in work.shards:
                span, options = writer.spec.span(shard), self.manifest.targets
                targets = backend.targets(self.corpus, *span, options)
                recheck(backend, self.corpus, targets, span, options, self.manifest.tokenizer.size)
                if pending is not None:
                    yield self._committed(backend, rows, pending)
                pending = pool.submit(_commit, writer, shard, targets)
            if pending is not None:
                yield self._committed(backend, rows, pending)
        if work.probe_pass:
            self._run_probe_pass(writer, backend)

    def finish(self, name: str) -> bool:
        """Complete a checkpoint if all of it is there; say whether it is complete now."""
        with self.store.exclusive():
            return self.writer(name).finish(self.corpus.position_offsets)

    def writer(self, name: str) -> CheckpointWriter:
        return CheckpointWriter(self.store, self.manifest, name)

    def _committed(self, backend: Backend, rows: "_RowsDone", pending: "Future[tuple[int, int]]") -> int:
        """Wait until a shard is committed, and return its number of positions."""
        with self.pace.waiting():
            start, end = pending.result()
        backend.done_with(self.corpus, rows.after(start, end))
        return end - start

    def _probe_rows(self) -> np.ndarray:
        return probe_rows(len(self.corpus), self.manifest.probe.sequences, self.manifest.targets.seed)

    def _run_probe_pass(self, writer: CheckpointWriter, backend: Backend) -> None:
        group = read_group(self.store, ProbeGroup, PROBE)
        arrays = open_probe(self.store, self.manifest, group)
        rows, ids = arrays["rows"].all(), np.ascontiguousarray(arrays["ids"].all().T)
        logp, log_tail = backend.probe_logp(self.corpus, rows, ids)
        code = quantise(logp, self.manifest.targets.logp_steps_per_nat)
        held_out_loss = backend.mean_loss(self.held_out) if self.held_out is not None else None
        writer.write_probe_pass(held_out_loss, code, log_tail)
        backend.done_with(self.corpus, rows)
        if self.held_out is not None:
            backend.done_with(self.held_out, np.arange(len(self.held_out.position_offsets) - 1))


@dataclass
class _RowsDone:
    """Which rows are committed with all of their positions, as one shard after another is."""

    position_offsets: np.ndarray
    kept: np.ndarray | None
    """Rows that will be asked for once more."""
    start: int = -1
    end: int = -1

    def after(self, start: int, end: int) -> np.ndarray:
        """Return the rows that committing [start, end) has finished; one that a shard's border cuts comes with both."""
        if start != self.end:
            self.start = start
        offsets, self.end = self.position_offsets, end
        rows = rows_between(offsets, start, end)
        rows = rows[(offsets[rows] >= self.start) & (offsets[rows + 1] <= end)]
        return rows if self.kept is None else np.setdiff1d(rows, self.kept)


def _commit(writer: CheckpointWriter, shard: int, targets: Targets) -> tuple[int, int]:
    writer.write_shard(shard, targets)
    return writer.spec.span(shard)
