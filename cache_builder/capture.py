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

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cache_builder.batches import Batch
from cache_builder.errors import ConfigError, ModelError
from cache_builder.head import Head, compute_weight, hidden_states_at, project, verify_head

BLOCK = 64
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


def _chunks_of_logits(hidden_MD: Tensor, head: Head, chunk_positions: int | None):  # type: ignore[no-untyped-def]
    """Yield (slice of positions, logits [C, W]); the buffer is used again, its padding columns hold −1e30.

    Yields one empty chunk where there is no position, so that results keep their shapes.
    """
    chunk_positions = chunk_positions or (256 if hidden_MD.device.type == "cpu" else 1024)
    weight_VD = compute_weight(head)
    width = -(-head.vocab_size // BLOCK) * BLOCK
    dtype = torch.float64 if weight_VD.dtype == torch.float64 else torch.float32
    buffer_CW = torch.empty(min(chunk_positions, max(len(hidden_MD), 1)), width, dtype=dtype, device=hidden_MD.device)
    for start in range(0, max(len(hidden_MD), 1), chunk_positions):
        chunk = slice(start, start + chunk_positions)
        logits_CW = buffer_CW[: len(hidden_MD[chunk])]
        project(hidden_MD[chunk], head, weight_VD, out=logits_CW[:, : head.vocab_size])
        logits_CW[:, head.vocab_size :] = _LOWEST
        yield chunk, logits_CW


def _capture_chunk(
    z_CW: Tensor, vocab_size: int, gold_C: Tensor, uniforms_CS: Tensor, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Turn a chunk of logits, which is overwritten, into ids, logp, samples, log_tail, gold and entropy."""
    ids_CK, values_CK = _top(z_CW, vocab_size, min(top_k + 1, vocab_size))
    z_gold_C = z_CW.gather(1, gold_C[:, None])[:, 0]
    used_CK = _prefix(z_CW, values_CK[:, :top_k], top_p)
    # The first value outside the support is the tail's largest: subtracting it keeps the smallest tail exact.
    first_out_C = used_CK.sum(1, keepdim=True).clamp(max=ids_CK.shape[1] - 1)
    largest_C1 = values_CK.gather(1, first_out_C)
    ids_CK, values_CK = ids_CK[:, :top_k], values_CK[:, :top_k]
    ids_CK = torch.where(used_CK, ids_CK, ids_CK[:, :1])
    values_CK = values_CK.masked_fill(~used_CK, -torch.inf)

    z_CW.sub_(largest_C1).scatter_(1, ids_CK, _LOWEST)
    e_CW = z_CW.exp()
    sums_CN = e_CW.unflatten(1, (-1, BLOCK)).sum(2)
    sum_C = sums_CN.sum(1)
    top_C1 = values_CK[:, :1].clone()  # shifting by it first keeps digits that the logits' size would cost
    largest_C1, z_gold_C, values_CK = largest_C1 - top_C1, z_gold_C - top_C1[:, 0], values_CK - top_C1
    log_tail_C = largest_C1[:, 0] + sum_C.log()
    lse_C = torch.cat([values_CK, log_tail_C[:, None]], dim=1).logsumexp(1)
    logp_CK = values_CK - lse_C[:, None]
    log_tail_C = log_tail_C - lse_C

    moment_C = torch.bmm(e_CW[:, None], z_CW[:, :, None])[:, 0, 0] / sum_C + largest_C1[:, 0]
    tail_entropy_C = torch.where(sum_C > 0, log_tail_C.exp() * (lse_C - moment_C), 0.0)
    entropy_C = tail_entropy_C - torch.where(used_CK, logp_CK.exp() * logp_CK, 0.0).sum(1)
    samples_CS = _draw(e_CW, sums_CN, uniforms_CS, ids_CK[:, :1])
    return ids_CK, logp_CK, samples_CS, log_tail_C, z_gold_C - lse_C, entropy_C


def _top(z_CW: Tensor, vocab_size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return ids and values of the `count` largest logits, by falling value, then rising id; exact.

    In two stages where that reads less: the blocks with the largest maxima (by the same rule) hold all of the winners.
    """
    blocks_CNB = z_CW.unflatten(1, (-1, BLOCK))
    if count * BLOCK < vocab_size:
        best_Cn = _order_keys(blocks_CNB.amax(2)).topk(count, dim=1).indices
        ids_CX = (best_Cn[:, :, None] * BLOCK + torch.arange(BLOCK, device=z_CW.device)).flatten(1)
        values_CX = z_CW.gather(1, ids_CX)
    else:
        values_CX = z_CW[:, :vocab_size]
        ids_CX = torch.arange(vocab_size, device=z_CW.device).expand_as(values_CX)
    winners_CK = _order_keys(values_CX, ids_CX).topk(count, dim=1).indices
    return ids_CX.gather(1, winners_CK), values_CX.gather(1, winners_CK)


def _order_keys(values_CX: Tensor, ids_CX: Tensor | None = None) -> Tensor:
    """Map (value, id) to distinct int64 keys that are larger for a larger value, and for a smaller id among equals."""
    if ids_CX is None:
        ids_CX = torch.arange(values_CX.shape[1], device=values_CX.device)
    bits_CX = (values_CX.float() + 0.0).view(torch.int32)  # + 0.0 makes −0 and +0 equal
    bits_CX = torch.where(bits_CX < 0, bits_CX ^ 0x7FFFFFFF, bits_CX)
    return (bits_CX.long() << 32) + (0xFFFFFFFF - ids_CX)


def _prefix(z_CW: Tensor, values_CK: Tensor, top_p: float) -> Tensor:
    """Return which slots belong to the smallest prefix of the top-k that holds `top_p` of the mass, or to all of it."""
    if top_p >= 1.0:
        return torch.ones_like(values_CK, dtype=torch.bool)
    mass_CK = (values_CK - z_CW.logsumexp(1, keepdim=True)).exp()
    return mass_CK.cumsum(1) - mass_CK < top_p


def _draw(e_CW: Tensor, sums_CN: Tensor, uniforms_CS: Tensor, fallback_C1: Tensor) -> Tensor:
    """Draw ids [C, S] with probability proportional to e, by its cumulative sum: first the block, then the token."""
    if uniforms_CS.shape[1] == 0:
        return torch.empty(uniforms_CS.shape, dtype=torch.int64, device=e_CW.device)
    sums_CN = sums_CN.double()
    cumulative_CN = sums_CN.cumsum(1)
    goal_CS = uniforms_CS.double() * cumulative_CN[:, -1:]
    block_CS = torch.searchsorted(cumulative_CN, goal_CS, right=True).clamp_(max=sums_CN.shape[1] - 1)
    block_sum_CS = sums_CN.gather(1, block_CS)
    rest_CS = (goal_CS - (cumulative_CN.gather(1, block_CS) - block_sum_CS)) / block_sum_CS
    rows_C1 = torch.arange(len(e_CW), device=e_CW.device)[:, None]
    e_CSB = e_CW.unflatten(1, (-1, BLOCK))[rows_C1, block_CS].double()
    cumulative_CSB = e_CSB.cumsum(2)
    token_CS = (cumulative_CSB <= rest_CS[:, :, None] * cumulative_CSB[:, :, -1:]).sum(2)
    last_CS = BLOCK - 1 - (e_CSB > 0).flip(2).int().argmax(2)  # rounding may step past the last token with mass
    drawn_CS = block_CS * BLOCK + torch.minimum(token_CS, last_CS)
    return torch.where(sums_CN.sum(1, keepdim=True) > 0, drawn_CS, fallback_C1)


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
