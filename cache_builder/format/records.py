"""What is stored of one distribution, as bytes: a target becomes one column of a u8 array.

    plane      0 … 3K−1           ids, u24, by falling probability: byte 0 of every slot, then byte 1, then byte 2
               3K … 5K−1          −logp in steps, u16, as the difference to the slot before: low bytes, then high bytes
               5K … 5K+3S−1       tail samples, u24, as the ids
               … + G              −log of each block's share of the tail in steps, u8     only with blocks
               … + 1              −log Σ p(v | tail)² in 16ths of a nat, u8               only with blocks and samples
               … + 12             log_tail, gold, entropy: f32, byte by byte

Bytes of one kind lie together, so zstd finds what they share: high bytes of ids are mostly one value, those of the
differences mostly zero. Log-probabilities are rounded to a step; `decode` renormalises them with the tail, and the
blocks' shares to the tail's mass.

Shapes: M positions, K slots of the support, S tail samples, G blocks of the tail.
"""

import math
from dataclasses import dataclass

import numpy as np

from cache_builder.errors import CacheDamagedError
from cache_builder.format.manifest import Manifest, TargetOptions
from cache_builder.format.zarr_shards import ArraySpec
from cache_builder.targets.blocks import ids_inside
from cache_builder.targets.sparse import Targets

UNUSED = 65535
EMPTY = 255
"""The share of a block in which the tail has no token."""
COLLISION_STEPS_PER_NAT = 16
ZSTD_LEVEL = 1
SUM_TOLERANCE = 0.01
"""How far from zero the log of a position's probabilities' sum may be beyond the rounding to steps: importers' sources
are of half precision, and a capture sums in float32."""
ID_BYTES, LOGP_BYTES, SCALAR_BYTES = 3, 2, 4


@dataclass(frozen=True)
class RecordLayout:
    """How many planes there are, and which holds what."""

    top_k: int
    tail_samples: int
    steps_per_nat: int
    edges: tuple[int, ...] = ()
    share_steps_per_nat: int = 1

    @classmethod
    def of(cls, options: TargetOptions) -> "RecordLayout":
        share_steps = options.blocks.steps_per_nat if options.blocks else 1
        return cls(options.top_k, options.tail_samples, options.logp_steps_per_nat, options.edges, share_steps)

    @property
    def n_planes(self) -> int:
        """Bytes of one position before compression."""
        return self.first_scalar_plane + 3 * SCALAR_BYTES

    @property
    def first_logp_plane(self) -> int:
        return ID_BYTES * self.top_k

    @property
    def first_sample_plane(self) -> int:
        return self.first_logp_plane + LOGP_BYTES * self.top_k

    @property
    def first_block_plane(self) -> int:
        return self.first_sample_plane + ID_BYTES * self.tail_samples

    @property
    def collision_plane(self) -> int:
        return self.first_block_plane + max(len(self.edges) - 1, 0)

    @property
    def first_scalar_plane(self) -> int:
        return self.collision_plane + bool(self.edges and self.tail_samples)


def records_spec(manifest: Manifest) -> ArraySpec:
    """Return the layout of a checkpoint's record array."""
    return ArraySpec(
        shape=(RecordLayout.of(manifest.targets).n_planes, manifest.corpus.positions),
        dtype="uint8",
        shard=manifest.layout.shard_positions,
        chunk=manifest.layout.chunk_positions,
        level=ZSTD_LEVEL,
    )


def quantise(logp: np.ndarray, steps_per_nat: int) -> np.ndarray:
    """Round log-probabilities to u16 steps below zero; −inf becomes 65535, what is too small 65534."""
    with np.errstate(invalid="ignore"):
        steps = np.rint(-logp.astype(np.float64) * steps_per_nat)
    code = np.clip(np.where(np.isfinite(steps), steps, 0), 0, UNUSED - 1).astype(np.uint16)
    return np.where(np.isneginf(logp), np.uint16(UNUSED), code)


def dequantise(code: np.ndarray, steps_per_nat: int) -> np.ndarray:
    """Undo `quantise` to f32; the error is at most half a step."""
    logp = _steps_to_nats(code, steps_per_nat)
    logp[code == UNUSED] = -np.inf
    return logp


def normalise(logp: np.ndarray, log_tail: np.ndarray, steps_per_nat: int) -> tuple[np.ndarray, np.ndarray]:
    """Shift log-probabilities [..., K] and log tail [...] so that they sum to one, which they do but for rounding.

    Raises:
        CacheDamagedError: they sum to something else, or hold a NaN.
    """
    # Both conditions are written so that a NaN fails them. The reductions are those of the ufuncs, as an array's `max`
    # costs a microsecond more, and a batch has few positions.
    if log_tail.size and not np.maximum.reduce(log_tail) <= SUM_TOLERANCE:
        raise CacheDamagedError("it holds a tail of more than all probability")
    total = np.exp(logp).sum(axis=-1, dtype=np.float32)
    total += np.exp(log_tail)
    if total.size:
        most = math.exp(0.5 / steps_per_nat + SUM_TOLERANCE)  # each is off by half a step at most, so their sum is too
        if not (np.minimum.reduce(total) >= 1 / most and np.maximum.reduce(total) <= most):
            raise CacheDamagedError("it holds probabilities that do not sum to one")
    shift = np.log(total)
    return logp - shift[..., None], log_tail - shift


def encode_records(layout: RecordLayout, targets: Targets) -> np.ndarray:
    """Turn M targets into u8 [planes, M]. Values of unused slots and of absent samples are not kept."""
    code_KM = quantise(targets.logp, layout.steps_per_nat).T
    delta_KM = np.diff(code_KM, axis=0, prepend=np.uint16(0))
    ids_KM = np.where(code_KM == UNUSED, 0, targets.ids.T)
    samples_SM = np.where(np.isneginf(targets.log_tail), 0, targets.samples.T)
    scalars_3M = np.stack([targets.log_tail, targets.gold, targets.entropy]).astype("<f4")
    planes = np.concatenate(
        [
            _planes(ids_KM.astype("<u4"), ID_BYTES),
            _planes(delta_KM.astype("<u2"), LOGP_BYTES),
            _planes(samples_SM.astype("<u4"), ID_BYTES),
            *_block_planes(layout, targets),
            _planes(scalars_3M, SCALAR_BYTES),
        ]
    )
    return np.ascontiguousarray(planes)


def decode_records(layout: RecordLayout, planes: np.ndarray, vocab_size: int, all_known: bool = False) -> Targets:
    """Turn u8 [planes, M] back into targets; `all_known` says that no gold and no entropy may be missing.

    Raises:
        CacheDamagedError: an id lies outside the vocabulary, probabilities do not sum to one, or a gold or an entropy
            is none.
    """
    k, s = layout.top_k, layout.tail_samples
    logp, samples, blocks = layout.first_logp_plane, layout.first_sample_plane, layout.first_block_plane
    ids_MK = _numbers(planes[:logp], k)
    delta_KM = planes[logp + k : logp + 2 * k].astype(np.uint16) << 8
    delta_KM |= planes[logp : logp + k]
    code_KM = np.add.accumulate(delta_KM, axis=0, dtype=np.uint16)
    samples_MS = _numbers(planes[samples:blocks], s)
    log_tail_M, gold_M, entropy_M = decode_scalars(layout, planes)
    unused_KM = code_KM == UNUSED
    has_unused = bool(unused_KM.any())
    if has_unused:
        ids_MK = np.where(unused_KM.T, ids_MK[:, :1], ids_MK)
    if all_known:
        _check_known(gold_M, entropy_M)
    no_tail_M = log_tail_M == -np.inf
    if no_tail_M.any():
        samples_MS[no_tail_M] = ids_MK[no_tail_M, :1]
    largest = np.maximum.reduce
    if len(ids_MK) and max(largest(ids_MK, axis=None), largest(samples_MS, axis=None, initial=0)) >= vocab_size:
        raise CacheDamagedError(f"it holds an id outside the vocabulary of {vocab_size:,} tokens")
    logp_KM = _steps_to_nats(code_KM, layout.steps_per_nat)
    if has_unused:
        logp_KM[unused_KM] = -np.inf
    logp_MK = np.ascontiguousarray(logp_KM.T)
    logp_MK, log_tail_M = normalise(logp_MK, log_tail_M, layout.steps_per_nat)
    targets = Targets(ids_MK, logp_MK, samples_MS, log_tail_M, gold_M, entropy_M)
    if layout.edges:
        _decode_blocks(layout, planes, targets)
    return targets


def _block_planes(layout: RecordLayout, targets: Targets) -> list[np.ndarray]:
    """Return the planes of the blocks' shares and of the tail's collisions, where the layout has them."""
    if not layout.edges:
        return []
    with np.errstate(invalid="ignore"):  # −inf − (−inf), where there is no tail
        steps_MG = np.rint((targets.log_tail[:, None] - targets.log_blocks) * layout.share_steps_per_nat)
    no_token_MG = np.isneginf(targets.log_blocks)
    code_MG = np.where(no_token_MG, EMPTY, np.clip(np.where(no_token_MG, 0, steps_MG), 0, EMPTY - 1))
    collision_MX = np.clip(np.rint(-targets.log_collision * COLLISION_STEPS_PER_NAT), 0, 255)
    return [code_MG.astype(np.uint8).T, collision_MX.astype(np.uint8).T]


def _decode_blocks(layout: RecordLayout, planes: np.ndarray, targets: Targets) -> None:
    """Put into targets what the planes say of the tail's blocks.

    Raises:
        CacheDamagedError: a tail lies in no block, or in one whose every token is in the support.
    """
    code_MG = planes[layout.first_block_plane : layout.collision_plane].T
    no_tail_M1 = targets.log_tail[:, None] == -np.inf
    empty_MG = (code_MG == EMPTY) | no_tail_M1
    share_MG = code_MG.astype(np.float32)
    share_MG *= np.float32(-1 / layout.share_steps_per_nat)
    np.exp(share_MG, out=share_MG)
    share_MG[empty_MG] = 0.0
    total_M1 = share_MG.sum(1, keepdims=True)
    if not ((total_M1 > 0) | no_tail_M1).all():
        raise CacheDamagedError("it holds a tail that lies in no block")
    _check_room(layout, targets, empty_MG)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_share_MG = np.log(share_MG / total_M1)
    log_share_MG[empty_MG] = -np.inf
    targets.log_blocks = np.where(no_tail_M1, np.float32(-np.inf), log_share_MG + targets.log_tail[:, None])
    collision_XM = planes[layout.collision_plane : layout.first_scalar_plane]
    targets.log_collision = np.ascontiguousarray(collision_XM.T) * np.float32(-1 / COLLISION_STEPS_PER_NAT)
    targets.edges = layout.edges


def _check_room(layout: RecordLayout, targets: Targets, empty_MG: np.ndarray) -> None:
    """Refuse mass in a block that the support fills: no student has any there, so its loss would be infinite."""
    widths_G = np.diff(layout.edges)
    if widths_G.min() > layout.top_k:
        return
    inside_MG = ids_inside(targets.ids, targets.logp > -np.inf, layout.edges)
    if ((inside_MG >= widths_G) & ~empty_MG).any():
        raise CacheDamagedError("it holds mass of the tail in a block that has no token outside the support")


def _steps_to_nats(code: np.ndarray, steps_per_nat: int) -> np.ndarray:
    logp = code.astype(np.float32)
    logp *= np.float32(-1 / steps_per_nat)
    return logp


def _check_known(gold_M: np.ndarray, entropy_M: np.ndarray) -> None:
    """Refuse a true token's log-probability, or an entropy, that is not finite or of the wrong sign beyond rounding."""
    if len(gold_M):
        largest, smallest = np.maximum.reduce, np.minimum.reduce
        if not (largest(gold_M) <= SUM_TOLERANCE and smallest(gold_M) > -np.inf):
            raise CacheDamagedError("it holds a log-probability of a true token that is none")
        if not (smallest(entropy_M) >= -SUM_TOLERANCE and largest(entropy_M) < np.inf):
            raise CacheDamagedError("it holds an entropy that is none")


def decode_scalars(layout: RecordLayout, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (log_tail, gold, entropy), each f32 [M], as stored."""
    first = layout.first_scalar_plane
    packed = planes[first:].reshape(SCALAR_BYTES, 3, -1).transpose(1, 2, 0)
    log_tail_M, gold_M, entropy_M = np.ascontiguousarray(packed).view("<f4")[..., 0]
    return log_tail_M, gold_M, entropy_M


def _planes(values: np.ndarray, n_bytes: int) -> np.ndarray:
    """[rows, M] numbers → u8 [n_bytes · rows, M], lowest byte first."""
    rows, columns = values.shape
    as_bytes = np.ascontiguousarray(values).view(np.uint8).reshape(rows, columns, values.dtype.itemsize)
    return as_bytes[..., :n_bytes].transpose(2, 0, 1).reshape(n_bytes * rows, columns)


def _numbers(planes: np.ndarray, rows: int) -> np.ndarray:
    """u8 [3 · rows, M] → i64 [M, rows]."""
    numbers = planes[2 * rows :].astype(np.int32) << 8
    numbers |= planes[rows : 2 * rows]
    numbers <<= 8
    numbers |= planes[:rows]
    return np.ascontiguousarray(numbers.T, dtype=np.int64)
