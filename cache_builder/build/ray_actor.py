"""One process of a Ray cluster that builds: it has a checkpoint in memory, and does one unit after another.

The store and the checkpoints are all that it shares with the driver's host: it reads the sequences from the cache, and
the held-out ones come with the job.
"""

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cache_builder.build.build import Build
from cache_builder.build.costs import BuildCost, CostNote
from cache_builder.build.work_units import Work
from cache_builder.build.worker import Worker
from cache_builder.cache.chunk_cache import ChunkMemory
from cache_builder.cache.corpus_view import CachedCorpus
from cache_builder.cache.opening import open_corpus
from cache_builder.cache.reader import DEFAULT_MEMORY_BYTES
from cache_builder.capture.backend import OpenEngine
from cache_builder.config import CacheExperiment, expand
from cache_builder.data.corpus import Corpus
from cache_builder.format.manifest import (
    CORPUS,
    CorpusGroup,
    Manifest,
    read_group,
)
from cache_builder.sequences import FlatSampleIds
from cache_builder.storage.base import Store
from cache_builder.storage.open import open_store


@dataclass(frozen=True)
class Job:
    """What every actor must know; small but for the held-out sequences, which the actors of a host share."""

    experiment: CacheExperiment
    store: Store
    manifest: Manifest
    locations: dict[str, str]
    tokenizer: Any
    held_out: Corpus | None
    open_engine: OpenEngine

    @classmethod
    def of(cls, build: Build) -> "Job":
        """Take from a build what means the same on another host, in another folder."""
        url = build.experiment.cache_url
        return cls(
            build.experiment,
            open_store(url if "://" in url else os.path.abspath(url)),
            build.manifest,
            {name: _absolute(location) for name, location in build.locations.items()},
            build.tokenizer,
            _portable(build.held_out) if build.held_out is not None else None,
            build.open_engine,
        )


class Actor:
    """Does what the driver asks for; Ray starts it again where it dies, and asks it again."""

    def __init__(self, index: int, actors: int) -> None:
        self.part = index, actors
        self.worker: Worker | None = None
        self.note: CostNote | None = None

    def arrive(self) -> None:
        """Say that this actor has found a place on the cluster."""

    def fix_probe(self, sent: list[Any], anchor: str) -> None:
        """Choose the probe by this checkpoint."""
        self._worker(sent).fix_probe(anchor)

    def build(self, sent: list[Any], name: str, work: Work) -> tuple[int, Path, BuildCost]:
        """Do some of a checkpoint's units; return how many positions they had, and the note of what it took."""
        worker = self._worker(sent)
        if self.note is None or self.note.cost.checkpoint != name:
            cache, console = worker.manifest.fingerprint, Console(stderr=True)
            self.note = CostNote(Path(), name, cache, self.part, console, worker.pace)
        writer = worker.writer(name)  # an actor that died may have committed a shard and not lived to say so
        there = [shard for shard in work.shards if writer.is_shard_done(shard)]
        left = work.without(there, probe_pass=False)
        positions = sum(worker.build(name, left)) if left.units else 0
        self.note.measure(positions, finished=True)
        found = sum(end - start for start, end in map(writer.spec.span, there))
        return positions + found, self.note.path, self.note.cost

    def finish(self, sent: list[Any], name: str) -> None:
        """Complete a checkpoint of which every unit is there."""
        self._worker(sent).finish(name)

    def _worker(self, sent: list[Any]) -> Worker:
        """Return this process's worker, made at the first call, which may be that of an actor started again.

        `sent` has the reference to the job in a list, because Ray would replace a bare one by what it refers to.
        """
        if self.worker is None:
            import ray

            job: Job = ray.get(sent[0])
            self.hand = job.store.join_as_worker()
            self.hand.__enter__()  # until this process ends
            group = read_group(job.store, CorpusGroup, CORPUS)
            arrays = open_corpus(job.store, job.manifest, group)
            corpus = CachedCorpus(arrays, ChunkMemory(DEFAULT_MEMORY_BYTES), job.manifest, job.store.where(""))
            engine = job.open_engine(job.experiment, job.tokenizer)
            self.worker = Worker(engine, job.store, job.manifest, job.locations, corpus, job.held_out)
        return self.worker


def _absolute(location: str) -> str:
    """A checkpoint's folder by its whole path; what is no folder here may be one there, or a hub id."""
    folder = Path(expand(location))
    return str(folder.resolve()) if folder.is_dir() else location


def _portable(corpus: Corpus) -> Corpus:
    """The corpus with plain arrays instead of files."""
    portable, ids = copy.copy(corpus), corpus.sample_ids
    portable.tokens, portable.completion = _plain(corpus.tokens), _plain(corpus.completion)
    portable.sample_ids = FlatSampleIds(_plain(ids.text), ids.offsets)
    return portable


def _plain(array: np.ndarray) -> Any:
    return np.asarray(array)
