"""A chunk of logits to targets: top-k with a tie rule, the tail's mass, entropy, draws from the tail. No model here.

    z ─▶ top-k, exact, by falling logit, then rising id
      ─▶ the top-k masked; rest = softmax of what is left, which subtracts the rest's own maximum
      ─▶ log of the rest's mass = its largest logit − log of that token's share in it
      ─▶ entropy from Σ rest·z;  tail samples by cumulative sums of rest, first over blocks, then within one

Slots that `top_p` drops join the rest; together they are the tail.

Shapes: C positions of a chunk, V vocabulary, W its width in whole blocks, N blocks of 64 tokens, X candidates, K slots,
S tail samples, R probe ids, O outcomes: the rest (absent where the top-k is the vocabulary) and the slots.
"""

import torch
from torch import Tensor

BLOCK = 64
LOWEST = -1e30
"""Stands for −inf where 0 · (−inf) would be NaN: its exp is 0, and 0 times it is 0. Also fills columns V to W."""


def extract(
    z_CW: Tensor, vocab_size: int, gold_C: Tensor, uniforms_CS: Tensor, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Turn a chunk of logits, which is overwritten, into ids, logp, samples, log_tail, gold and entropy."""
    ids_CK, values_CK = top(z_CW, vocab_size, min(top_k + 1, vocab_size))
    next_C1, largest_rest_C1 = ids_CK[:, top_k:], values_CK[:, top_k:]  # empty where the top-k is the vocabulary
    ids_CK, values_CK = ids_CK[:, :top_k], values_CK[:, :top_k]
    z_gold_C = z_CW.gather(1, gold_C[:, None])[:, 0]

    z_CW.scatter_(1, ids_CK, LOWEST)
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


def top(z_CW: Tensor, vocab_size: int, count: int) -> tuple[Tensor, Tensor]:
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
        return draw(rest_CW, uniforms_CS)
    rest_columns = logp_CO.shape[1] - ids_CK.shape[1]
    cumulative_CO = (logp_CO - logp_CO.logsumexp(1, keepdim=True)).double().exp().nan_to_num(0.0).cumsum(1)
    goal_CS = uniforms_CS * cumulative_CO[:, -1:]
    outcome_CS = _first_above(cumulative_CO, goal_CS)
    drawn_CS = ids_CK.gather(1, (outcome_CS - rest_columns).clamp(min=0))
    if rest_columns:
        within_CS = (goal_CS / cumulative_CO[:, :1]).nan_to_num(0.0, posinf=1.0).clamp(max=1.0)
        drawn_CS = torch.where(outcome_CS == 0, draw(rest_CW, within_CS), drawn_CS)
    return drawn_CS


def draw(weights_CW: Tensor, uniforms_CS: Tensor) -> Tensor:
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


def logp_and_rest(z_CV: Tensor, ids_CR: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities at ids, and the log of the rest's mass by a masked logsumexp; overwrites the logits."""
    z_CR = z_CV.gather(1, ids_CR)
    log_rest_C = z_CV.scatter_(1, ids_CR, -torch.inf).logsumexp(1)
    logp_CO = torch.log_softmax(torch.cat([z_CR, log_rest_C[:, None]], dim=1), dim=1)
    return logp_CO[:, :-1], logp_CO[:, -1]
