"""Plan the work of a cache, do this builder's part of it, continue what was begun, complete what is whole.

    corpus, tokenizer, options ─▶ manifest ─▶ zarr.json, corpus/          one builder, the others wait
    anchor ─▶ probe rows and ids ─▶ probe/                                one builder, the others wait
    for each checkpoint of this part:  load once ─▶ shards not yet there ─▶ extras ─▶ complete, if all units are there

Any number of builders with the same n, in any order; one that was stopped is continued by giving the command again,
also with another n. The bytes are the same: they depend on the manifest, the weights and the numerics of the machine.
"""

import gc
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from cache_builder import format as names
from cache_builder.config import CacheExperiment
from cache_builder.corpus import Corpus
from cache_builder.costs import CostNote
from cache_builder.errors import CacheMismatchError, ConfigError, MissingError
from cache_builder.format import (
    CorpusIdentity,
    Layout,
    Manifest,
    ProbeGroup,
    ProbeOptions,
    TargetOptions,
    TokenizerIdentity,
)
from cache_builder.plan import Work, divide, probe_rows
from cache_builder.progress import BuildProgress
from cache_builder.reader import open_arrays, open_cache
from cache_builder.repair import take_back_damage
from cache_builder.store import Store, open_store
from cache_builder.teacher import Teacher, identify
from cache_builder.text import template_fingerprint, tokenizer_fingerprint
from cache_builder.writer import CheckpointWriter, create_cache, write_order, write_probe


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
) -> bool:
    """Build one part of a cache; return whether every checkpoint asked for is complete now.

    Args:
        checkpoints: (name, folder or hub id), oldest first; the last one fixes the probe's ids when the cache is new.
        held_out: sequences for each checkpoint's held-out loss.
        part: (i, n): do the i-th of n equal shares.
        only: build this checkpoint alone.
        repair: first verify every byte, and take back the units of damaged files; only as the one part (0, 1).

    Raises:
        ConfigError: `repair` with more than one part.
        CacheDamagedError: a file of what is complete is missing or has another size than was committed.
        CacheMismatchError: what is there was made from something else.
        CacheBusyError: another builder holds this part, or divides the work differently.
        CacheWriteError: a file could not be written; what was committed is safe.
        ModelError: a checkpoint's logits are not finite, or it does not fit the tokenizer.
    """
    build = Build(experiment, corpus, tokenizer, list(checkpoints), held_out, only)
    if repair and part != (0, 1):
        raise ConfigError("--repair works alone; give no --part")
    with build.store.hold(part):
        if repair:
            take_back_damage(build.store, build.manifest)
        complete = build.run(part)
    if complete:
        open_cache(experiment.cache_url)
    return complete


def teacher_checkpoints(experiment: CacheExperiment) -> list[tuple[str, str]]:
    """Return the teacher's checkpoints as (name, location), oldest first.

    Raises:
        MissingError: our own fine-tuning has not listed any yet.
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
        entries = json.loads(listing.read_text())["checkpoints"]
        found = [(entry["name"], _beside(folder, entry["path"])) for entry in entries]
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
    only: str | None

    def __post_init__(self) -> None:
        self.manifest = plan_manifest(self.experiment, self.corpus, self.tokenizer, self.held_out)
        self.store: Store = open_store(self.experiment.cache_url)
        known = [name for name, _ in self.checkpoints]
        if self.only is not None and self.only not in known:
            raise MissingError(f"--checkpoint {self.only!r}: there is none of that name; there are: {', '.join(known)}")
        self.selected = [(n, location) for n, location in self.checkpoints if self.only in (None, n)]
        self.writers = {name: CheckpointWriter(self.store, self.manifest, name) for name, _ in self.selected}
        self.console = Console(stderr=True)

    def run(self, part: tuple[int, int]) -> bool:
        """Do this part's work."""
        with self.store.stage():
            create_cache(self.store, self.manifest, self.corpus)
            write_order(self.store, [name for name, _ in self.selected])
        fingerprints = self._check_complete()
        open_names = [name for name, _ in self.selected if not self.writers[name].is_complete()]
        if open_names:
            with self.store.stage():
                self._ensure_probe()
        locations = dict(self.selected)
        for work in divide(len(self.selected), next(iter(self.writers.values())).n_shards, part):
            name = self.selected[work.checkpoint][0]
            if name in open_names:
                self._build_checkpoint(name, locations[name], work, fingerprints, part)
        return all([self._finish(name) for name, _ in self.selected])

    def _build_checkpoint(
        self, name: str, location: str, work: Work, fingerprints: dict[str, str], part: tuple[int, int]
    ) -> None:
        writer = self.writers[name]
        done = writer.shards_done()
        shards = [shard for shard in work.shards if shard not in done]
        extras = work.extras and writer.extras_done() is None
        if not shards and not extras:
            return
        fingerprint = fingerprints.get(name) or identify(self.experiment, location)
        note = CostNote(self.experiment.output_dir, name, self.manifest.fingerprint, part, self.console)
        teacher = Teacher(self.experiment, name, location, self.tokenizer, fingerprint)
        with self.store.stage():
            writer.begin(teacher.identity)
        total = sum(end - start for start, end in map(writer.spec.span, shards))
        with BuildProgress(self.console, name, total, note) as progress, ThreadPoolExecutor(1) as pool:
            pending: Future[None] | None = None
            for shard in shards:
                start, end = writer.spec.span(shard)
                targets = teacher.targets(self.corpus, start, end, self.manifest.targets)
                if pending is not None:
                    pending.result()
                pending = pool.submit(writer.write_shard, shard, targets)
                progress.advance(end - start)
            if pending is not None:
                pending.result()
            if extras:
                self._write_extras(writer, teacher)
        del teacher
        free_memory()
        self._finish(name)

    def _write_extras(self, writer: CheckpointWriter, teacher: Teacher) -> None:
        group = names.unseal(ProbeGroup, self.store.read("probe/zarr.json"), self.store.where("probe/zarr.json"))
        arrays = open_arrays(self.store, names.PROBE, group.files)
        rows, ids = arrays["rows"].all(), np.ascontiguousarray(arrays["ids"].all().T)
        code, log_tail = teacher.probe_logp(self.corpus, rows, ids, self.manifest.targets.logp_steps_per_nat)
        held_out_loss = teacher.mean_loss(self.held_out) if self.held_out is not None else None
        writer.write_extras(held_out_loss, code, log_tail)

    def _ensure_probe(self) -> None:
        if self.store.exists(f"{names.PROBE}/zarr.json"):
            return
        name, location = self.checkpoints[-1]
        self.console.print(f"probe: its ids from checkpoint {name}", highlight=False)
        teacher = Teacher(self.experiment, name, location, self.tokenizer, identify(self.experiment, location))
        options = self.manifest.probe
        rows = probe_rows(len(self.corpus), options.sequences, self.manifest.targets.seed)
        write_probe(self.store, teacher.identity, rows, teacher.probe_ids(self.corpus, rows, options.top_k))
        del teacher
        free_memory()

    def _check_complete(self) -> dict[str, str]:
        """Compare complete checkpoints with the weights that are there now; return the fingerprints that were made."""
        fingerprints: dict[str, str] = {}
        for name, location in self.selected:
            if not self.writers[name].is_complete():
                continue
            key = f"{names.checkpoint_key(name)}/zarr.json"
            recorded = names.unseal(names.CheckpointGroup, self.store.read(key), self.store.where(key)).identity
            try:
                fingerprints[name] = identify(self.experiment, location)
            except MissingError:
                continue
            now = recorded.model_copy(update={"weights_fingerprint": fingerprints[name]})
            names.compare(recorded, now, f"checkpoint {name!r} of cache {self.store.where('')}")
        return fingerprints

    def _finish(self, name: str) -> bool:
        with self.store.stage():
            return self.writers[name].finish(self.corpus.position_offsets)


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
    return Manifest(
        format=names.FORMAT_NAME,
        version=names.FORMAT_VERSION,
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


def free_memory() -> None:
    """Give a model's memory back before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _name_of(location: str) -> str:
    """Last part of a folder's path; of a hub id, its revision if it has one."""
    return location.rstrip("/").rpartition("@" if "@" in location and not Path(location).exists() else "/")[2]


def _beside(folder: Path, path: str) -> str:
    """A path as it stands, or, if that is not there, relative to the teacher's folder."""
    return path if Path(path).exists() or Path(path).is_absolute() else str(folder / path)
