"""What there is to say about a cache: sizes, retained mass and losses, as plain values."""

from typing import Any

import numpy as np

from cache_builder.cache.reader import Cache

MASS_CHUNKS = 256


def describe(cache: Cache) -> dict[str, Any]:
    """Return the facts of a cache; losses in nats per position, sizes in bytes.

    `retained_mass` is 1 − the tail's mass, over at most 256 evenly spaced chunks; its `p90` is what nine positions of
    ten reach at least. What an imported cache does not know is None: `loss` where a sequence's is missing, and
    `retained_mass` where there is no tail.
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
        "imported": manifest.imported.model_dump() if manifest.imported else None,
        "corpus_bytes": cache.corpus_bytes,
        "probe_bytes": cache.probe_bytes,
        "unfinished": [name for name in cache.begun if name not in cache.checkpoints],
        "checkpoints": [_describe_checkpoint(cache, name) for name in cache.checkpoints],
    }


def _describe_checkpoint(cache: Cache, name: str) -> dict[str, Any]:
    positions, imported = cache.manifest.corpus.positions, cache.manifest.imported
    identity = cache.checkpoint(name).identity
    losses = cache.losses(name)
    unknown = int(np.isnan(losses).sum())
    retained = None if imported is not None and imported.tail == "none" else _summary(retained_mass(cache, name))
    return {
        "name": name,
        "weights_fingerprint": identity.weights_fingerprint,
        "dtype": identity.dtype,
        "attn_implementation": identity.attn_implementation,
        "bytes": cache.checkpoint_bytes(name),
        "bytes_per_position": cache.checkpoint_bytes(name) / positions,
        "retained_mass": retained,
        "loss": None if unknown else float(losses.sum() / positions),
        "sequences_without_loss": unknown,
        "held_out_loss": cache.held_out(name),
    }


def _summary(mass: np.ndarray) -> dict[str, float]:
    quantiles = dict(zip(("p50", "p90", "p99"), np.quantile(mass, [0.5, 0.1, 0.01]).tolist(), strict=True))
    return {"mean": float(mass.mean()), **quantiles}


def retained_mass(cache: Cache, name: str) -> np.ndarray:
    """Return the probability that the stored ids hold, f64 per position of at most 256 evenly spaced chunks."""
    chunk, positions = cache.manifest.layout.chunk_positions, cache.manifest.corpus.positions
    n_chunks = -(-positions // chunk)
    chosen = np.unique(np.linspace(0, n_chunks - 1, min(n_chunks, MASS_CHUNKS)).astype(np.int64))
    log_tail = [
        cache.read_spans(name, [(int(i) * chunk, min(positions, (int(i) + 1) * chunk))]).log_tail for i in chosen
    ]
    return -np.expm1(np.concatenate(log_tail).astype(np.float64))
