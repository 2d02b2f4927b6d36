"""What there is to say about a cache: sizes, retained mass and losses, as plain values."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from cache_builder.cache.reader import Cache, Targets

MASS_CHUNKS = 64
"""Chunks of which retained mass is measured: a quarter of a million positions with the default layout."""


def describe(cache: Cache) -> dict[str, Any]:
    """Return the facts of a cache; losses in nats per position, sizes in bytes.

    What an imported cache does not know is None: `loss` where a sequence's is missing, and `retained_mass` where there
    is no tail.
    """
    manifest = cache.manifest
    return {
        "url": cache.url,
        "version": manifest.version,
        "fingerprint": cache.fingerprint,
        "sequences": manifest.corpus.sequences,
        "tokens": manifest.corpus.tokens,
        "positions": manifest.corpus.positions,
        "vocabulary": manifest.tokenizer.size,
        "top_k": manifest.targets.top_k,
        "top_p": manifest.targets.top_p,
        "tail_samples": manifest.targets.tail_samples,
        "tail_blocks": max(len(manifest.targets.edges) - 1, 0),
        "imported": manifest.imported.model_dump() if manifest.imported else None,
        "corpus_bytes": cache.corpus_bytes,
        "probe_bytes": cache.probe_bytes,
        "unfinished": cache.unfinished,
        "checkpoints": [_describe_checkpoint(cache, name) for name in cache.checkpoints],
    }


def _describe_checkpoint(cache: Cache, name: str) -> dict[str, Any]:
    positions = cache.manifest.corpus.positions
    identity = cache.checkpoint(name).identity
    losses = cache.losses(name)
    unknown = int(np.isnan(losses).sum())
    return {
        "name": name,
        "weights_fingerprint": identity.weights_fingerprint,
        "dtype": identity.dtype,
        "attn_implementation": identity.attn_implementation,
        "bytes": cache.checkpoint_bytes(name),
        "bytes_per_position": cache.checkpoint_bytes(name) / positions,
        "retained_mass": retained_mass(cache, name),
        "loss": None if unknown else float(losses.sum() / positions),
        "sequences_without_loss": unknown,
        "held_out_loss": cache.held_out(name),
    }


def retained_mass(cache: Cache, name: str) -> dict[str, float] | None:
    """Return the probability that the stored ids hold, 1 − the tail's mass, over `sampled_targets`.

    `mean`, and what 50, 90 and 99 % of the positions reach at least: `p50`, `p90`, `p99`. None where an imported cache
    does not know its tail.
    """
    imported = cache.manifest.imported
    if imported is not None and imported.tail == "none":
        return None
    log_tail = np.concatenate([targets.log_tail for targets in sampled_targets(cache, name)])
    mass = -np.expm1(log_tail.astype(np.float64))
    quantiles = dict(zip(("p50", "p90", "p99"), np.quantile(mass, [0.5, 0.1, 0.01]).tolist(), strict=True))
    return {"mean": float(mass.mean()), **quantiles}


def sampled_targets(cache: Cache, name: str) -> Iterator[Targets]:
    """Yield the targets of at most 64 evenly spaced chunks: those that stand for all wherever mass is told."""
    chunk, positions = cache.manifest.layout.chunk_positions, cache.manifest.corpus.positions
    n_chunks = -(-positions // chunk)
    for number in np.unique(np.linspace(0, n_chunks - 1, min(n_chunks, MASS_CHUNKS)).astype(np.int64)).tolist():
        yield cache.read_spans(name, [(number * chunk, min(positions, (number + 1) * chunk))])
