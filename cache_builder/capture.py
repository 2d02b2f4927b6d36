"""A model and a batch to sparse targets, losses and probe log-probabilities, a chunk of positions at a time.

    hidden states at positions ─▶ chunk of logits z, float32 ─▶ top-k, exact, ties by id
                                                             ─▶ the support masked: e = exp(z − tail's maximum)
                                                             ─▶ Σ e: log tail, log-sum-exp, log-probs, gold
                                                             ─▶ Σ e·z: entropy        ─▶ blocks of e: tail samples

Tie rule: by falling logit, then by rising id. Results do not depend on what else is in the batch, up to the rounding of
the model's own dtype. A NaN or an infinity stops the capture and names the row.

Shapes: B sequences, M positions, C positions of a chunk, D hidden size, V vocabulary, W its width in whole blocks,
N blocks of 64 tokens, K slots, S tail samples, R probe ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cache_builder.batches import Batch
from cache_builder.errors import ConfigError, ModelError
from cache_builder.head import Head, compute_weight, hidden_states_at, project, verify_head

BLOCK = 64
_CACHED_LOGITS = 2**20
_LOWEST = -1e30
"""Stands for −inf where 0 · (−inf) would be NaN: its exp is 0, and 0 times it is 0."""


class NonFiniteError(ModelError):
    """A model's logits hold a NaN or an infinity."""

    def __init__(self, model: nn.Module, row: int, position: int) -> None:
        super().__init__(
            f"{type(model).__name__}: NaN or infinite logits in row {row} of the batch, at its position {position}; "
            f"expected finite numbers; try a wider dtype (bfloat16 or float32), or check the checkpoint"
        )
        self.row = row


@dataclass(frozen=True)
class Captured:
    """What one checkpoint says at the M positions of a batch; numpy, before quantisation."""

    ids: np.ndarray
    """[M, K] int64, by falling probability; unused slots repeat slot 0's id."""
    logp: np.ndarray
    """[M, K] float32, −inf in unused slots."""
    samples: np.ndarray
    """[M, S] int64, drawn from the tail; slot 0's id where the tail is empty."""
    log_tail: np.ndarray
    """[M] float32, −inf where the support is the whole vocabulary."""
    gold: np.ndarray
    """[M] float32, log-probability of the true token."""
    entropy: np.ndarray
    """[M] float32, of the full distribution."""
    loss: np.ndarray
    """[B] float64, −Σ gold over the sequence's positions."""
    probe_logp: np.ndarray | None = None
    """[M, R] float32, at the probe's ids."""
    probe_log_tail: np.ndarray | None = None
    """[M] float32, log of the mass outside the probe's ids."""


@torch.no_grad()
def capture(
    model: nn.Module,
    batch: Batch,
    vocab_size: int,
    *,
    top_k: int,
    top_p: float,
    uniforms_MS: np.ndarray,
    probe_ids_MR: np.ndarray | None = None,
    chunk_positions: int | None = None,
) -> Captured:
    """Capture the targets at every position of a batch.

    Args:
        top_k: slots per position; the support is the smallest prefix of them that holds `top_p` of the mass, or all.
        uniforms_MS: one number in (0, 1) per tail sample, from `tail_uniforms`; [M, 0] for no samples.
        probe_ids_MR: also gather the log-probabilities at these ids, distinct within a position.

    Raises:
        ConfigError: `top_k` exceeds the vocabulary.
        NonFiniteError: the logits hold a NaN or an infinity.
        ModelError: the head is of a kind that is not supported.
    """
    if top_k > vocab_size:
        raise ConfigError(f"cache.top_k is {top_k}, but the vocabulary has only {vocab_size} tokens; lower it")
    verify_head(model)
    hidden_MD, head = hidden_states_at(model, batch, vocab_size)
    device = hidden_MD.device
    gold_M = batch["gold_M"].to(device)
    uniforms = torch.from_numpy(uniforms_MS).to(device)
    probe_ids = None if probe_ids_MR is None else torch.from_numpy(probe_ids_MR.astype(np.int64)).to(device)
    chunks, probe_chunks = [], []
    for chunk, logits_CW in _chunks_of_logits(hidden_MD, head, chunk_positions):
        if probe_ids is not None:
            probe_chunks.append(_logp_and_rest(logits_CW[:, :vocab_size].clone(), probe_ids[chunk]))
        chunks.append(_capture_chunk(logits_CW, vocab_size, gold_M[chunk], uniforms[chunk], top_k, top_p))
    ids, logp, samples, log_tail, gold, entropy = (_join(parts) for parts in zip(*chunks, strict=True))
    _check_finite(model, batch, gold + entropy + logp[:, 0])
    probe_logp, probe_log_tail = (
        (None, None) if probe_ids is None else (_join(parts) for parts in zip(*probe_chunks, strict=True))
    )
    return Captured(
        ids, logp, samples, log_tail, gold, entropy, sequence_losses(batch, gold), probe_logp, probe_log_tail
    )


@torch.no_grad()
def gold_logp(model: nn.Module, batch: Batch, vocab_size: int, chunk_positions: int | None = None) -> np.ndarray:
    """Return the log-probability of the true token at every position, [M] float32.

    Raises:
        NonFiniteError: the logits hold a NaN or an infinity.
    """
    verify_head(model)
    hidden_MD, head = hidden_states_at(model, batch, vocab_size)
    gold_M = batch["gold_M"].to(hidden_MD.device)
    parts = []
    for chunk, logits_CW in _chunks_of_logits(hidden_MD, head, chunk_positions):
        z_gold_C = logits_CW.gather(1, gold_M[chunk, None])[:, 0]
        largest_C = logits_CW.amax(1)
        log_sum_C = logits_CW.sub_(largest_C[:, None]).exp_().sum(1).log_()
        parts.append((z_gold_C - largest_C) - log_sum_C)
    gold = _join(parts)
    _check_finite(model, batch, gold)
    return gold


@torch.no_grad()
def probe_logp(
    model: nn.Module, batch: Batch, vocab_size: int, ids_MR: np.ndarray, chunk_positions: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities at given ids, [M, R], and the log of the mass outside them, [M]; both float32.

    Raises:
        NonFiniteError: the logits hold a NaN or an infinity.
    """
    verify_head(model)
    hidden_MD, head = hidden_states_at(model, batch, vocab_size)
    ids = torch.from_numpy(ids_MR.astype(np.int64)).to(hidden_MD.device)
    parts = [
        _logp_and_rest(logits_CW[:, :vocab_size], ids[chunk])
        for chunk, logits_CW in _chunks_of_logits(hidden_MD, head, chunk_positions)
    ]
    logp, log_rest = (_join(column) for column in zip(*parts, strict=True))
    _check_finite(model, batch, logp[:, 0])
    return logp, log_rest


@torch.no_grad()
def probe_ids(
    model: nn.Module, batch: Batch, vocab_size: int, count: int, chunk_positions: int | None = None
) -> np.ndarray:
    """Choose the probe's ids [M, count], int64: the model's top tokens, the last of them replaced by a gold that is not
    among them.

    Raises:
        NonFiniteError: the logits hold a NaN or an infinity.
    """
    verify_head(model)
    hidden_MD, head = hidden_states_at(model, batch, vocab_size)
    gold_M = batch["gold_M"].to(hidden_MD.device)
    parts, finite = [], []
    for chunk, logits_CW in _chunks_of_logits(hidden_MD, head, chunk_positions):
        ids_CR, values_CR = _top(logits_CW, vocab_size, min(count, vocab_size))
        absent_C = (ids_CR != gold_M[chunk, None]).all(1)
        ids_CR[:, -1] = torch.where(absent_C, gold_M[chunk], ids_CR[:, -1])
        parts.append(ids_CR)
        finite.append(values_CR.sum(1))
    _check_finite(model, batch, _join(finite))
    return _join(parts)


def sequence_losses(batch: Batch, gold: np.ndarray) -> np.ndarray:
    """Sum −gold [M] over each sequence's positions, in float64: [B]."""
    sequences = batch["sequence_M"].cpu().numpy()
    return np.bincount(sequences, weights=-gold.astype(np.float64), minlength=len(batch["input_ids"]))


def _chunks_of_logits(hidden_MD: Tensor, head: Head, chunk_positions: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice of positions, logits [C, W]) for each position once; the padding columns hold −1e30.

    The matmul wants many rows at a time, what follows it few enough to stay in a CPU's caches, so there the yielded
    slices are parts of a chunk. The buffer is used again. Without positions one empty slice keeps the results' shapes.
    """
    on_cpu = hidden_MD.device.type == "cpu"
    chunk_positions = chunk_positions or (256 if on_cpu else 1024)
    weight_VD = compute_weight(head)
    width = -(-head.vocab_size // BLOCK) * BLOCK
    positions = len(hidden_MD)
    yielded = max(1, _CACHED_LOGITS * torch.get_num_threads() // width) if on_cpu else chunk_positions
    dtype = torch.float64 if weight_VD.dtype == torch.float64 else torch.float32
    buffer_CW = torch.empty(min(chunk_positions, positions), width, dtype=dtype, device=hidden_MD.device)
    if positions == 0:
        yield slice(0), buffer_CW
    for start in range(0, positions, chunk_positions):
        end = min(start + chunk_positions, positions)
        logits_CW = buffer_CW[: end - start]
        project(hidden_MD[start:end], head, weight_VD, out=logits_CW[:, : head.vocab_size])
        logits_CW[:, head.vocab_size :] = _LOWEST
        for first in range(start, end, yielded):
            last = min(first + yielded, end)
            yield slice(first, last), logits_CW[first - start : last - start]


def _capture_chunk(
    z_CW: Tensor, vocab_size: int, gold_C: Tensor, uniforms_CS: Tensor, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Turn a chunk of logits, which is overwritten, into ids, logp, samples, log_tail, gold and entropy."""
    ids_CK, values_CK = _top(z_CW, vocab_size, min(top_k + 1, vocab_size))
    next_C1, largest_rest_C1 = ids_CK[:, top_k:], values_CK[:, top_k:]  # empty where the top-k is the vocabulary
    ids_CK, values_CK = ids_CK[:, :top_k], values_CK[:, :top_k]
    z_gold_C = z_CW.gather(1, gold_C[:, None])[:, 0]

    z_CW.scatter_(1, ids_CK, _LOWEST)
    rest_CW = torch.softmax(z_CW, dim=1)
    # softmax subtracts the rest's own maximum, whose entry is then 1 / Σ: exact however little mass the rest has.
    lse_rest_C1 = largest_rest_C1 - rest_CW.gather(1, next_C1).log()
    top_C1 = values_CK[:, :1].clone()  # shifting by it first keeps digits that the logits' size would cost
    shifted_CO = torch.cat([values_CK, lse_rest_C1], dim=1) - top_C1
    log_sum_C1 = shifted_CO.logsumexp(1, keepdim=True)
    logp_CO = shifted_CO - log_sum_C1
    logp_CK, log_rest_C1 = logp_CO[:, :top_k], logp_CO[:, top_k:]
    gold_logp_C = z_gold_C - top_C1[:, 0] - log_sum_C1[:, 0]

    entropy_C = -(logp_CK.exp() * logp_CK).sum(1)
    if log_rest_C1.shape[1]:
        mean_C = z_CW.mul_(rest_CW).sum(1) - top_C1[:, 0]
        entropy_C += log_rest_C1.exp()[:, 0] * (log_sum_C1[:, 0] - mean_C)

    used_CK = logp_CK.exp().cumsum(1) - logp_CK.exp() < (top_p if top_p < 1.0 else 2.0)
    dropped_CO = torch.cat([log_rest_C1, logp_CK.masked_fill(used_CK, -torch.inf)], dim=1)
    log_tail_C = dropped_CO.logsumexp(1)
    samples_CS = _draw_tail(rest_CW, dropped_CO, ids_CK, uniforms_CS, whole=top_p >= 1.0)
    samples_CS = torch.where(log_tail_C[:, None] > -torch.inf, samples_CS, ids_CK[:, :1])
    ids_CK = torch.where(used_CK, ids_CK, ids_CK[:, :1])
    return ids_CK, logp_CK.masked_fill(~used_CK, -torch.inf), samples_CS, log_tail_C, gold_logp_C, entropy_C


def _top(z_CW: Tensor, vocab_size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return ids and values of the `count` largest logits, by falling value, then rising id; exact.

    In two stages where that reads less: the blocks with the largest maxima (by the same rule) hold all of the winners.
    """
    blocks_CNB = z_CW.unflatten(1, (-1, BLOCK))
    if count * BLOCK < vocab_size:
        maxima_CN = blocks_CNB.amax(2)
        best_Cn = _order_keys(maxima_CN, torch.arange(maxima_CN.shape[1], device=z_CW.device)).topk(count).indices
        ids_CX = (best_Cn[:, :, None] * BLOCK + torch.arange(BLOCK, device=z_CW.device)).flatten(1)
        values_CX = z_CW.gather(1, ids_CX)
    else:
        values_CX = z_CW[:, :vocab_size]
        ids_CX = torch.arange(vocab_size, device=z_CW.device).expand_as(values_CX)
    winners_CK = _order_keys(values_CX, ids_CX).topk(count).indices
    return ids_CX.gather(1, winners_CK), values_CX.gather(1, winners_CK)


def _order_keys(values_CX: Tensor, ids_CX: Tensor) -> Tensor:
    """Map (value, id) to distinct int64 keys that are larger for a larger value, and for a smaller id among equals."""
    bits_CX = (values_CX.float() + 0.0).view(torch.int32)  # + 0.0 makes −0 and +0 equal
    return ((bits_CX ^ ((bits_CX >> 31) & 0x7FFFFFFF)).long() << 32) - ids_CX


def _draw_tail(rest_CW: Tensor, logp_CO: Tensor, ids_CK: Tensor, uniforms_CS: Tensor, whole: bool) -> Tensor:
    """Draw ids [C, S] from the tail: what lies outside the top-k, and the slots that `top_p` dropped.

    `logp_CO` holds the log-probability of each of them, the rest first (absent where the top-k is the vocabulary), and
    −inf in kept slots; `whole` says that nothing was dropped. Where there is no tail the ids mean nothing.
    """
    if whole or uniforms_CS.shape[1] == 0:
        return _draw(rest_CW, uniforms_CS)
    rest_columns = logp_CO.shape[1] - ids_CK.shape[1]
    cumulative_CO = (logp_CO - logp_CO.logsumexp(1, keepdim=True)).double().exp().nan_to_num(0.0).cumsum(1)
    goal_CS = uniforms_CS * cumulative_CO[:, -1:]
    outcome_CS = _first_above(cumulative_CO, goal_CS)
    drawn_CS = ids_CK.gather(1, (outcome_CS - rest_columns).clamp(min=0))
    if rest_columns:
        within_CS = (goal_CS / cumulative_CO[:, :1]).nan_to_num(0.0, posinf=1.0).clamp(max=1.0)
        drawn_CS = torch.where(outcome_CS == 0, _draw(rest_CW, within_CS), drawn_CS)
    return drawn_CS


def _draw(weights_CW: Tensor, uniforms_CS: Tensor) -> Tensor:
    """Draw ids [C, S] in proportion to the weights, by their cumulative sum: first the block, then the token."""
    blocks_CNB = weights_CW.unflatten(1, (-1, BLOCK))
    sums_CN = blocks_CNB.sum(2).double()
    cumulative_CN = sums_CN.cumsum(1)
    goal_CS = uniforms_CS * cumulative_CN[:, -1:]
    block_CS = _first_above(cumulative_CN, goal_CS)
    within_CS = goal_CS - (cumulative_CN - sums_CN).gather(1, block_CS)
    rows_C1 = torch.arange(len(weights_CW), device=weights_CW.device)[:, None]
    cumulative_SB = blocks_CNB[rows_C1, block_CS].double().cumsum(2).flatten(0, 1)
    token_S1 = _first_above(cumulative_SB, within_CS.reshape(-1, 1))
    return block_CS * BLOCK + token_S1.view_as(block_CS)


def _first_above(cumulative_XN: Tensor, goal_XS: Tensor) -> Tensor:
    """Return the first index whose cumulative sum exceeds the goal; the last with mass where rounding leaves none."""
    last_X1 = torch.searchsorted(cumulative_XN, cumulative_XN[:, -1:].contiguous())
    index_XS = torch.minimum(torch.searchsorted(cumulative_XN, goal_XS, right=True), last_X1)
    return index_XS.clamp_(max=cumulative_XN.shape[1] - 1)  # a NaN row is reported later, not here


def _logp_and_rest(z_CV: Tensor, ids_CR: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities at ids, and the log of the rest's mass by a masked logsumexp; overwrites the logits."""
    z_CR = z_CV.gather(1, ids_CR)
    log_rest_C = z_CV.scatter_(1, ids_CR, -torch.inf).logsumexp(1)
    logp_CO = torch.log_softmax(torch.cat([z_CR, log_rest_C[:, None]], dim=1), dim=1)
    return logp_CO[:, :-1], logp_CO[:, -1]


def _join(parts: tuple[Tensor, ...] | list[Tensor]) -> np.ndarray:
    joined = torch.cat(list(parts))
    return (joined.float() if joined.is_floating_point() else joined).cpu().numpy()


def _check_finite(model: nn.Module, batch: Batch, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        sequences = batch["sequence_M"].cpu().numpy()
        row = int(sequences[bad[0]])
        raise NonFiniteError(model, row, int(bad[0] - np.searchsorted(sequences, row)))
