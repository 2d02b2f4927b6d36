"""A random sample of every shard runs again before the shard is committed, each sequence alone.

    a shard's targets ─▶ some sequences, encoded and decoded ─┬─▶ differ at most by rounding ─▶ committed
    the same sequences, one at a time, from the live model ───┘     else refused: what would be stored is not theirs

It costs a few sequences among the tens of thousands of positions of a shard, and finds what would pass unseen: rows put
in each other's place, a family or a kernel that lets padding or neighbours change what it says, a damaged encoding.
"""

import numpy as np

from cache_builder.capture.backend import Backend
from cache_builder.errors import ModelError
from cache_builder.format.manifest import TargetOptions
from cache_builder.format.records import RecordLayout, decode_records, encode_records
from cache_builder.positions import rows_between
from cache_builder.sequences import NumberedSequences
from cache_builder.targets.sparse import Targets

SEQUENCES = 4
"""Of each shard, at most."""
_EXACT = ("float32", "float64")
_TOLERANCE_NATS, _HALF_TOLERANCE_NATS = 5e-3, 0.1


def recheck(
    backend: Backend,
    corpus: NumberedSequences,
    targets: Targets,
    span: tuple[int, int],
    options: TargetOptions,
    vocab_size: int,
) -> None:
    """Compare what is to be stored of a span's positions with what the model says of a few of its sequences alone.

    Raises:
        ModelError: they differ by more than rounding.
    """
    start, end = span
    rows = rows_between(corpus.position_offsets, start, end)
    chosen = np.random.default_rng([options.seed, start, 0xA0D17]).permutation(rows)[:SEQUENCES]
    layout, found = RecordLayout.of(options), []
    for row in chosen:
        first, last = (int(np.clip(corpus.position_offsets[row + side], start, end)) for side in (0, 1))
        stored = targets[first - start : last - start]
        stored = decode_records(layout, encode_records(layout, stored), vocab_size)
        found.append(differences(stored, backend.targets(corpus, first, last, options), layout.share_steps_per_nat))
    # In half precision a token may be far off by itself, where a router or an outlier tips; most of them may not.
    exact = backend.identity.dtype in _EXACT
    worst = float((np.mean if exact else np.median)(np.concatenate(found)))
    allowed = (_TOLERANCE_NATS if exact else _HALF_TOLERANCE_NATS) + 1 / options.logp_steps_per_nat
    if not worst <= allowed:
        names = ", ".join(repr(corpus.sample_ids[int(row)]) for row in chosen)
        raise ModelError(
            f"checkpoint {backend.identity.name!r} says of sequences {names} alone what it did not say of them in a "
            f"batch: {worst:.3g} nats apart, at most {allowed:.3g} expected in {backend.identity.dtype}; nothing of "
            "this shard is stored; try cache.batch_tokens = 1 (no padding, no neighbours), another "
            "teacher.attn_implementation, or dtype"
        )


def differences(stored: Targets, live: Targets, share_steps_per_nat: int = 1) -> np.ndarray:
    """Return how far apart two targets are at each position, in nats, f64 [M].

    The largest of: the stored log-probabilities' mean difference, by their probability; gold; entropy; the tail's mass;
    its masses by blocks, beyond the rounding of their shares to steps.
    Of an id that it has not, the live model says at most its own least; so a tie at the support's end is no difference.
    """
    same_MKK = stored.ids[:, :, None] == live.ids[:, None, :]
    least_M1 = np.where(np.isneginf(live.logp), np.inf, live.logp).min(1, keepdims=True)
    live_MK = np.where(same_MKK.any(2), np.take_along_axis(live.logp, same_MKK.argmax(2), 1), least_M1)
    used_MK = ~np.isneginf(stored.logp)
    rounding = np.expm1(1 / share_steps_per_nat)  # half a step, and at most as much again by renormalising
    apart_MK = np.where(used_MK, np.abs(np.where(used_MK, stored.logp, 0) - live_MK), 0)
    parts = (
        (np.exp(stored.logp) * apart_MK).sum(1) / np.exp(stored.logp).sum(1),
        np.abs(stored.gold - live.gold),
        np.abs(stored.entropy - live.entropy),
        np.abs(np.exp(stored.log_tail) - np.exp(live.log_tail)),
        np.abs(np.exp(stored.log_blocks) - np.exp(live.log_blocks)).sum(1) - np.exp(live.log_tail) * rounding,
    )
    return np.max(np.stack(parts).astype(np.float64), axis=0)
