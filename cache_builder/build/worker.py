"""One process's part in a build: a checkpoint in memory, and the work that it is given, shard by shard.

    work ─▶ its checkpoint, unless it is in memory ─▶ a shard's targets ─▶ encoded and committed ─▶ … ─▶ probe pass
                                                      while the next one's targets are captured

Every scheduler builds with it: `build.py` in its own process, `ray_scheduler.py` in each of its actors.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from cache_builder.build.work_units import Work, probe_rows
from cache_builder.cache.reader import open_arrays
from cache_builder.cache.writer import CheckpointWriter, write_probe
from cache_builder.capture.teacher import Teacher, identify
from cache_builder.config import CacheExperiment
from cache_builder.format.manifest import (
    PROBE,
    Manifest,
    ProbeGroup,
    read_group,
)
from cache_builder.models.adapters import SharedBase
from cache_builder.sequences import NumberedSequences
from cache_builder.storage.base import Store
from cache_builder.targets.sparse import Targets


@dataclass
class Worker:
    """Runs checkpoints for a builder that holds the cache; one at a time is in memory."""

    experiment: CacheExperiment
    store: Store
    manifest: Manifest
    locations: dict[str, str]
    """Where each checkpoint lies: a folder or a hub id, by name."""
    tokenizer: PreTrainedTokenizerBase
    corpus: NumberedSequences
    held_out: NumberedSequences | None

    def __post_init__(self) -> None:
        self._teacher: Teacher | None = None
        self._base = SharedBase()
        self._fingerprints: dict[str, str] = {}

    def load(self, name: str) -> Teacher:
        """Bring a checkpoint to memory, in place of another, and return it.

        Raises:
            ModelError: it cannot be loaded, or does not fit the tokenizer.
        """
        if self._teacher is None or self._teacher.name != name:
            self.unload()
            location = self.locations[name]
            if name not in self._fingerprints:
                self._fingerprints[name] = identify(self.experiment, location)
            fingerprint = self._fingerprints[name]
            self._teacher = Teacher(self.experiment, name, location, self.tokenizer, fingerprint, self._base)
        return self._teacher

    def unload(self) -> None:
        """Give a checkpoint's memory back, except a base that other adapters may need."""
        if self._teacher is not None:
            self._teacher.release()
            self._teacher = None

    def fix_probe(self, anchor: str) -> None:
        """Choose the probe's sequences, and their ids from what the anchor says."""
        teacher, options = self.load(anchor), self.manifest.probe
        rows = probe_rows(len(self.corpus), options.sequences, self.manifest.targets.seed)
        write_probe(self.store, teacher.identity, rows, teacher.probe_ids(self.corpus, rows, options.top_k))

    def build(self, name: str, work: Work) -> Iterator[int]:
        """Do the work, which is one checkpoint's; yield a shard's number of positions once it is committed.

        Raises:
            CacheMismatchError: the checkpoint was begun with other weights.
            ModelError: its logits are not finite, or it cannot be loaded.
            CacheWriteError: a file could not be written; what was committed is safe.
        """
        teacher, writer = self.load(name), self.writer(name)
        with self.store.exclusive():
            writer.begin(teacher.identity)
        with ThreadPoolExecutor(1) as pool:
            pending: Future[int] | None = None
            for shard in work.shards:
                targets = teacher.targets(self.corpus, *writer.spec.span(shard), self.manifest.targets)
                if pending is not None:
                    yield pending.result()
                pending = pool.submit(_commit, writer, shard, targets)
            if pending is not None:
                yield pending.result()
        if work.probe_pass:
            self._run_probe_pass(writer, teacher)

    def finish(self, name: str) -> bool:
        """Complete a checkpoint if all of it is there; say whether it is complete now."""
        with self.store.exclusive():
            return self.writer(name).finish(self.corpus.position_offsets)

    def writer(self, name: str) -> CheckpointWriter:
        return CheckpointWriter(self.store, self.manifest, name)

    def _run_probe_pass(self, writer: CheckpointWriter, teacher: Teacher) -> None:
        group = read_group(self.store, ProbeGroup, PROBE)
        arrays = open_arrays(self.store, PROBE, group.files)
        rows, ids = arrays["rows"].all(), np.ascontiguousarray(arrays["ids"].all().T)
        code, log_tail = teacher.probe_logp(self.corpus, rows, ids, self.manifest.targets.logp_steps_per_nat)
        held_out_loss = teacher.mean_loss(self.held_out) if self.held_out is not None else None
        writer.write_probe_pass(held_out_loss, code, log_tail)


def _commit(writer: CheckpointWriter, shard: int, targets: Targets) -> int:
    writer.write_shard(shard, targets)
    return len(targets)
