"""Write a cache of any size from made-up targets, in flat memory and without a model: for benchmarks and fixtures.

    python -m tools.synthetic_cache FOLDER --sequences 10000

Every token, id and probability is a pure function of its index, so a reader can say what each must be. Ids follow
Zipf's law, and log-probabilities fall like a language model's; how well they compress is therefore only indicative.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cache_builder.cache.writer import CheckpointWriter, create_cache, write_order, write_probe
from cache_builder.format.manifest import (
    CheckpointIdentity,
    CorpusIdentity,
    Layout,
    Manifest,
    ProbeOptions,
    TargetOptions,
    TokenizerIdentity,
)
from cache_builder.format.options import BlockOptions
from cache_builder.format.records import quantise
from cache_builder.storage.base import Store
from cache_builder.storage.local import LocalStore
from cache_builder.targets.blocks import block_edges, ids_inside
from cache_builder.targets.sparse import Targets

PROMPT_TOKENS = 12


@dataclass(frozen=True)
class Synthetic:
    """The sizes of a made-up cache."""

    sequences: int
    vocabulary: int = 128_256
    top_k: int = 16
    tail_samples: int = 8
    checkpoints: tuple[str, ...] = ("step-1",)
    shard_positions: int = 65_536
    chunk_positions: int = 4_096
    mean_positions: int = 40
    probe_sequences: int = 8
    logp_steps_per_nat: int = field(default=128, repr=False)  # not part of the fingerprint of the fixture's corpus
    tail_blocks: int = field(default=0, repr=False)

    @property
    def edges(self) -> tuple[int, ...]:
        """Where the vocabulary is cut into the tail's blocks."""
        return block_edges(self.tail_blocks, self.vocabulary) if self.tail_blocks else ()

    def position_offsets(self) -> np.ndarray:
        """Where each sequence's positions begin, i64 [n+1]."""
        counts = 1 + scrambled(np.arange(self.sequences), 1) % np.uint64(2 * self.mean_positions - 1)
        return np.concatenate([[0], np.cumsum(counts.astype(np.int64))])

    def corpus(self) -> Any:
        """What the writer reads of a corpus; tokens are made when they are asked for."""
        position_offsets = self.position_offsets()
        token_offsets = position_offsets + PROMPT_TOKENS * np.arange(self.sequences + 1)
        ids = [f"row-{row}".encode() for row in range(self.sequences)]
        id_offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
        text = np.frombuffer(b"".join(ids), np.uint8)
        return SimpleNamespace(
            fingerprint=f"synthetic {self}",
            tokens=Made(
                int(token_offsets[-1]), lambda at: (scrambled(at, 2) % np.uint64(self.vocabulary)).astype("<u4")
            ),
            completion=Made(int(token_offsets[-1]), lambda at: _is_completion(token_offsets, at)),
            token_offsets=token_offsets,
            position_offsets=position_offsets,
            sample_ids=SimpleNamespace(text=text, offsets=id_offsets),
        )

    def targets(self, checkpoint: int, start: int, end: int) -> Targets:
        """The targets of global positions [start, end)."""
        positions = np.arange(start, end)[:, None]
        slots = np.arange(self.top_k + self.tail_samples)
        uniform = unit(scrambled(positions * 64 + slots, 10 + checkpoint))
        ids = np.minimum(self.vocabulary**uniform, self.vocabulary).astype(np.int64) - 1
        gaps = -np.log(unit(scrambled(positions * 64 + slots[: self.top_k], 50 + checkpoint))) * 0.8
        logits = -np.cumsum(gaps, axis=1)
        log_tail = logits[:, -1] + 1.0
        total = np.log(np.exp(logits).sum(1) + np.exp(log_tail))
        logp = (logits - total[:, None]).astype(np.float32)
        gold = logp[:, 0] - unit(scrambled(positions[:, 0], 90)).astype(np.float32)
        targets = Targets(
            ids=ids[:, : self.top_k],
            logp=logp,
            samples=ids[:, self.top_k :],
            log_tail=(log_tail - total).astype(np.float32),
            gold=gold,
            entropy=-(np.exp(logp) * logp).sum(1).astype(np.float32),
        )
        if self.edges:
            self._add_blocks(targets, positions, checkpoint)
        return targets

    def _add_blocks(self, targets: Targets, positions: np.ndarray, checkpoint: int) -> None:
        """Divide the tail's mass among blocks that the support leaves room in."""
        share = -np.log(unit(scrambled(positions * 64 + np.arange(self.tail_blocks), 130 + checkpoint)))
        full = ids_inside(targets.ids, targets.logp > -np.inf, self.edges) >= np.diff(self.edges)
        share = np.where(full, 0.0, share)
        with np.errstate(divide="ignore"):
            log_share = np.log(share / share.sum(1, keepdims=True))
        targets.log_blocks = (log_share + targets.log_tail[:, None]).astype(np.float32)
        if self.tail_samples:
            targets.log_collision = -2 - 4 * unit(scrambled(positions, 170 + checkpoint)).astype(np.float32)
        targets.edges = self.edges


class Made:
    """A long array whose entries are made from their indexes."""

    def __init__(self, length: int, make: Any) -> None:
        self.shape, self.make = (length,), make

    def __getitem__(self, span: slice) -> np.ndarray:
        return self.make(np.arange(*span.indices(self.shape[0])))


def write_synthetic_cache(store: Store, synthetic: Synthetic) -> None:
    """Write the whole cache, one shard in memory at a time."""
    corpus = synthetic.corpus()
    manifest = manifest_of(synthetic, corpus)
    create_cache(store, manifest, corpus)
    write_order(store, list(synthetic.checkpoints))
    rows = np.arange(min(synthetic.probe_sequences, synthetic.sequences))
    n_probe = int(corpus.position_offsets[len(rows)])
    for number, name in enumerate(synthetic.checkpoints):
        identity = CheckpointIdentity(
            name=name, weights_fingerprint=f"made up {number}", dtype="float32", attn_implementation="none"
        )
        if not number:
            write_probe(store, identity, rows, synthetic.targets(0, 0, n_probe).ids.astype(np.uint32))
        writer = CheckpointWriter(store, manifest, name)
        writer.begin(identity)
        for shard in range(writer.n_shards):
            writer.write_shard(shard, synthetic.targets(number, *writer.spec.span(shard)))
        probe = synthetic.targets(number, 0, n_probe)
        writer.write_probe_pass(
            float(number + 1), quantise(probe.logp, manifest.targets.logp_steps_per_nat), probe.log_tail
        )
        assert writer.finish(corpus.position_offsets)


def manifest_of(synthetic: Synthetic, corpus: Any) -> Manifest:
    """The manifest of a made-up cache."""
    return Manifest(
        format="footsteps-cache",
        version=3 if synthetic.edges else 1,
        tokenizer=TokenizerIdentity(fingerprint="made up", size=synthetic.vocabulary),
        chat_template_fingerprint="made up",
        corpus=CorpusIdentity(
            fingerprint=corpus.fingerprint,
            sequences=synthetic.sequences,
            tokens=int(corpus.token_offsets[-1]),
            positions=int(corpus.position_offsets[-1]),
        ),
        held_out=None,
        targets=TargetOptions(
            top_k=synthetic.top_k,
            top_p=1.0,
            tail_samples=synthetic.tail_samples,
            logp_steps_per_nat=synthetic.logp_steps_per_nat,
            seed=0,
            blocks=BlockOptions(edges=list(synthetic.edges), steps_per_nat=4) if synthetic.edges else None,
        ),
        probe=ProbeOptions(sequences=synthetic.probe_sequences, top_k=synthetic.top_k),
        layout=Layout(shard_positions=synthetic.shard_positions, chunk_positions=synthetic.chunk_positions),
    )


def scrambled(index: np.ndarray, stream: int) -> np.ndarray:
    """Scramble indexes to u64, SplitMix64's finaliser."""
    state = index.astype(np.uint64) * np.uint64(2) + np.uint64((stream * 0x9E3779B97F4A7C15) % 2**64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def unit(values: np.ndarray) -> np.ndarray:
    """Map u64 to (0, 1)."""
    return ((values >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _is_completion(token_offsets: np.ndarray, at: np.ndarray) -> np.ndarray:
    row = np.searchsorted(token_offsets, at, side="right") - 1
    return at - token_offsets[row] >= PROMPT_TOKENS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", type=int, default=10_000)
    arguments = parser.parse_args()
    write_synthetic_cache(LocalStore(arguments.folder), Synthetic(arguments.sequences))
