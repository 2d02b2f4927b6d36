"""Plan the work of a cache, do this builder's part of it, continue what was begun, complete what is whole.

    corpus, tokenizer, options ─▶ manifest ─▶ zarr.json, corpus/          one builder, the others wait
    anchor ─▶ probe rows and ids ─▶ probe/                                one builder, the others wait
    for each checkpoint of this part:  load once ─▶ shards not yet there ─▶ probe pass ─▶ complete, if all is there

Any number of builders with the same n, in any order; one that was stopped is continued by giving the command again,
also with another n. The bytes are the same: they depend on the manifest, the weights and the numerics of the machine.
A scheduler says where the checkpoints run: in this process, one after another, or on a cluster (`ray_scheduler.py`).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from cache_builder.build.costs import CostNote
from cache_builder.build.progress import BuildProgress
from cache_builder.build.work_units import Work, divide
from cache_builder.build.worker import Worker
from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import take_back_damage
from cache_builder.cache.writer import CheckpointWriter, create_cache, write_order
from cache_builder.capture.backend import OpenEngine, open_engine
from cache_builder.config import CacheExperiment
from cache_builder.data.corpus import Corpus
from cache_builder.data.digests import check_recorded
from cache_builder.data.rendering.templates import template_fingerprint
from cache_builder.data.tokenizer import tokenizer_fingerprint
from cache_builder.errors import CacheDamagedError, CacheMismatchError, ConfigError, MissingError
from cache_builder.format.differences import compare
from cache_builder.format.manifest import (
    BLOCKS_VERSION,
    FORMAT_NAME,
    FORMAT_VERSION,
    PROBE,
    CheckpointGroup,
    CorpusIdentity,
    Layout,
    Manifest,
    ProbeOptions,
    TargetOptions,
    TokenizerIdentity,
    checkpoint_key,
    read_group,
)
from cache_builder.format.options import BlockOptions
from cache_builder.narration import say
from cache_builder.storage.base import Store
from cache_builder.storage.open import open_store
from cache_builder.targets.blocks import block_edges


class Scheduler(Protocol):
    """Where checkpoints run."""

    def fix_probe(self, anchor: str) -> None:
        """Choose the probe, by the checkpoint of this name."""

    def build(self, works: list[Work]) -> None:
        """Do all of the work, and complete the checkpoints that are whole then."""


OpenScheduler = Callable[["Build"], AbstractContextManager[Scheduler]]
"""Opens a scheduler for a build that holds the cache, and closes it."""


def build_cache(
    experiment: CacheExperiment,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    checkpoints: Sequence[tuple[str, str]],
    held_out: Corpus | None = None,
    *,
    part: tuple[int, int] = (0, 1),
    only: str | None = None,
    repair: bool = False,
    scheduler: OpenScheduler | None = None,
    engine: OpenEngine = open_engine,
) -> bool:
    """Build one part of a cache; return whether every checkpoint asked for is complete now.

    Args:
        checkpoints: (name, folder or hub id), oldest first; the last one fixes the probe's ids when the cache is new.
        held_out: sequences for each checkpoint's held-out loss.
        part: (i, n): do the i-th of n equal shares.
        only: build this checkpoint alone.
        repair: first verify every byte, and take back the units of damaged files; only as the one part (0, 1).
        scheduler: opens what decides where the checkpoints run; in this process unless given.
        engine: opens what runs them; that of the config unless given.

    Raises:
        ConfigError: `repair` with more than one part.
        CacheDamagedError: a file of what is complete is missing or has another size than was committed.
        CacheMismatchError: what is there was made from something else.
        CacheBusyError: another builder holds this part, or divides the work differently.
        CacheWriteError: a file could not be written; what was committed is safe.
        ModelError: a checkpoint's logits are not finite, or it does not fit the tokenizer.
    """
    if repair and part != (0, 1):
        raise ConfigError("--repair works alone; give no --part")

    def run() -> bool:
        build = Build(experiment, corpus, tokenizer, list(checkpoints), held_out, part, only, engine)
        with build.store.lock_part(part):
            if repair:
                take_back_damage(build.store, build.manifest)
            complete = build.run(scheduler or in_this_process)
        if complete:
            open_cache(experiment.cache_url)
        return complete

    return engine(experiment, tokenizer).run_build(run)


def teacher_checkpoints(experiment: CacheExperiment) -> list[tuple[str, str]]:
    """Return the teacher's checkpoints as (name, location), oldest first.

    Raises:
        MissingError: our own fine-tuning has not listed any yet.
        CacheDamagedError: its list is not what it wrote.
        CacheMismatchError: two have the same name.
    """
    if isinstance(experiment.teacher.checkpoints, list):
        found = [(_name_of(location), location) for location in experiment.teacher.checkpoints]
    else:
        folder = experiment.output_dir / "teacher"
        listing = folder / "checkpoints.json"
        if not listing.is_file():
            raise MissingError(
                f"{listing}: the teacher has no checkpoints yet; run `footsteps sft CONFIG teacher` first, "
                "or list folders in teacher.checkpoints"
            )
        found = _listed(listing)
    listed = [name for name, _ in found]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise CacheMismatchError(f"teacher.checkpoints: {twice[0]!r} names two checkpoints; rename one of the folders")
    return found


@dataclass
class Build:
    """One builder's run over a cache."""

    experiment: CacheExperiment
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    checkpoints: list[tuple[str, str]]
    held_out: Corpus | None
    part: tuple[int, int] = (0, 1)
    only: str | None = None
    open_engine: OpenEngine = open_engine

    def __post_init__(self) -> None:
        self.engine = self.open_engine(self.experiment, self.tokenizer)
        self.manifest = plan_manifest(self.experiment, self.corpus, self.tokenizer, self.held_out)
        self.store: Store = open_store(self.experiment.cache_url)
        self.locations = dict(self.checkpoints)
        if self.only is not None and self.only not in self.locations:
            known = ", ".join(self.locations)
            raise MissingError(f"--checkpoint {self.only!r}: there is none of that name; there are: {known}")
        self.selected = [name for name in self.locations if self.only in (None, name)]
        self.writers = {name: CheckpointWriter(self.store, self.manifest, name) for name in self.selected}
        self.console = Console(stderr=True, markup=False)

    def run(self, scheduler: OpenScheduler) -> bool:
        """Do this part's work; say whether every checkpoint is complete now."""
        with self.store.exclusive():
            create_cache(self.store, self.manifest, self.corpus)
            write_order(self.store, self.selected)
        self._check_complete()
        whole = list(divide(len(self.selected), self._n_shards, self.part))
        works = [self.left(work) for work in whole]
        for asked, work in zip(whole, works, strict=True):
            self._say_what_is_there(asked, work)
        works = [work for work in works if work.units]
        if works:
            with scheduler(self) as running:
                with self.store.exclusive():
                    self._ensure_probe(running)
                running.build(works)
        with self.store.exclusive():
            return all([self.writers[name].finish(self.corpus.position_offsets) for name in self.selected])

    def _say_what_is_there(self, whole: Work, left: Work) -> None:
        """Say of a checkpoint that this is not its first build."""
        name, done, units = self.name(whole), whole.units - left.units, whole.units
        if done and not left.units:
            say("skipped", f"{name}: all {units} units are committed; skipped", stderr=True, name=name)
        elif done:
            text = f"{name}: goes on, {done} of {units} units are committed"
            say("continued", text, stderr=True, name=name, done=done, units=units)

    def name(self, work: Work) -> str:
        """Return the name of a work's checkpoint."""
        return self.selected[work.checkpoint]

    def left(self, work: Work) -> Work:
        """Return what has yet to be done of a work."""
        writer = self.writers[self.name(work)]
        if writer.is_complete():
            return work.without(work.shards, probe_pass=True)
        return work.without(writer.shards_done(), probe_pass=writer.probe_pass_done() is not None)

    def positions(self, work: Work) -> int:
        """Return how many positions a work has."""
        return sum(end - start for start, end in map(self.writers[self.name(work)].spec.span, work.shards))

    @property
    def _n_shards(self) -> int:
        return next(iter(self.writers.values())).n_shards

    def _ensure_probe(self, scheduler: Scheduler) -> None:
        if not self.store.exists(f"{PROBE}/zarr.json"):
            anchor, _ = self.checkpoints[-1]
            say("probe", f"probe: its ids from checkpoint {anchor}", stderr=True, checkpoint=anchor)
            scheduler.fix_probe(anchor)

    def _check_complete(self) -> None:
        """Compare complete checkpoints with the weights that are there now."""
        for name in self.selected:
            if not self.writers[name].is_complete():
                continue
            recorded = read_group(self.store, CheckpointGroup, checkpoint_key(name)).identity
            try:
                fingerprint = self.engine.identify(self.locations[name])
            except MissingError:
                continue
            now = recorded.model_copy(update={"weights_fingerprint": fingerprint})
            compare(recorded, now, f"checkpoint {name!r} of cache {self.store.where('')}")


@contextmanager
def in_this_process(build: Build) -> Iterator[Scheduler]:
    """Run the checkpoints here, one after another."""
    worker = Worker(build.engine, build.store, build.manifest, build.locations, build.corpus, build.held_out)
    try:
        yield OneAfterAnother(build, worker)
    finally:
        worker.unload()


@dataclass
class OneAfterAnother:
    """The scheduler of one process."""

    job: Build
    worker: Worker

    def fix_probe(self, anchor: str) -> None:
        self.worker.fix_probe(anchor)

    def build(self, works: list[Work]) -> None:
        for work in works:
            job, name = self.job, self.job.name(work)
            output_dir, cache = job.experiment.output_dir, job.manifest.fingerprint
            note = CostNote(output_dir, name, cache, job.part, job.console, self.worker.pace)
            self.worker.load(name)
            with BuildProgress(job.console, name, job.positions(work), note) as progress:
                for positions in self.worker.build(name, work):
                    progress.advance(positions)
            self.worker.finish(name)


def plan_manifest(
    experiment: CacheExperiment, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, held_out: Corpus | None
) -> Manifest:
    """Return the manifest of the cache that this experiment would make.

    Raises:
        ConfigError: more tokens are to be stored per position than the vocabulary has.
    """
    options, size = experiment.cache, len(tokenizer)
    if options.top_k > size:
        raise ConfigError(f"cache.top_k is {options.top_k:,}, but the tokenizer has only {size:,} tokens; lower it")
    if options.tail_blocks > size:
        raise ConfigError(
            f"cache.tail_blocks is {options.tail_blocks:,}, but the tokenizer has only {size:,} tokens; lower it"
        )
    blocks = None
    if options.tail_blocks:
        edges = list(block_edges(options.tail_blocks, size))
        blocks = BlockOptions(edges=edges, steps_per_nat=options.tail_steps_per_nat)
    return Manifest(
        format=FORMAT_NAME,
        version=BLOCKS_VERSION if blocks else FORMAT_VERSION,
        tokenizer=TokenizerIdentity(fingerprint=tokenizer_fingerprint(tokenizer), size=size),
        chat_template_fingerprint=template_fingerprint(tokenizer, experiment.text.chat_template),
        corpus=corpus_identity(corpus),
        held_out=corpus_identity(held_out) if held_out is not None else None,
        targets=TargetOptions(
            top_k=options.top_k,
            top_p=options.top_p,
            tail_samples=options.tail_samples,
            logp_steps_per_nat=options.logp_steps_per_nat,
            seed=experiment.run.seed,
            blocks=blocks,
        ),
        probe=ProbeOptions(sequences=options.probe_sequences, top_k=min(options.probe_top_k, size)),
        layout=Layout(shard_positions=options.shard_positions, chunk_positions=options.chunk_positions),
    )


def corpus_identity(corpus: Corpus) -> CorpusIdentity:
    """Return a corpus's fingerprint and sizes."""
    return CorpusIdentity(
        fingerprint=corpus.fingerprint,
        sequences=len(corpus),
        tokens=int(corpus.token_offsets[-1]),
        positions=corpus.n_positions,
    )


def _name_of(location: str) -> str:
    """Last part of a folder's path; of a hub id, its revision if it has one."""
    return location.rstrip("/").rpartition("@" if "@" in location and not Path(location).exists() else "/")[2]


def _listed(listing: Path) -> list[tuple[str, str]]:
    """Return the names and folders of what a fine-tuning lists, by its record as it was written."""
    folder = listing.parent
    check_recorded(folder, listing.name, "the list of checkpoints")
    try:
        entries = json.loads(listing.read_bytes())["checkpoints"]
        return [(str(entry["name"]), _beside(folder, str(entry["path"]))) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheDamagedError(
            f"{listing} is damaged: {type(error).__name__}: {error}; remove {folder} to make it again"
        ) from None


def _beside(folder: Path, path: str) -> str:
    """A path relative to the teacher's folder, or, if nothing is there, as it stands."""
    return str(folder / path) if (folder / path).exists() else path
