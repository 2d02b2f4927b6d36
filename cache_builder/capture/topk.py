"""A chunk of logits to targets: top-k with a tie rule, the tail's mass, entropy, draws from the tail. No model here.

    z ─▶ a slice of rows at a time, so that what is read often stays in a CPU's caches:
           top-k, exact, by falling logit, then rising id
           the top-k masked; rest = softmax of what is left, which subtracts the rest's own maximum
           Σ rest·z, the rest's mass by blocks of 64, by the blocks that a cache keeps, and Σ rest²
      ─▶ the whole chunk, where little is left to be read:
           log of the rest's mass = its largest logit − log of that token's share in it
           entropy from Σ rest·z;  tail samples by cumulative sums of rest, first over blocks, then within one

Slots that `top_p` drops join the rest; together they are the tail.

Shapes: C positions of a chunk, V vocabulary, W its width in whole blocks, N blocks of 64 tokens, X candidates, K slots,
S tail samples, G blocks that a cache keeps, R probe ids, O outcomes: the rest (absent where the top-k is the
vocabulary) and the slots.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from cache_builder.targets.sparse import Targets

BLOCK = 64
LOWEST = -1e30
"""Stands for −inf where 0 · (−inf) would be NaN: its exp is 0, and 0 times it is 0. Also fills columns V to W."""
_CACHED_LOGITS = 2**22
"""Logits that the row work is given at a time on a CPU: 16 MiB, and as much again for what it makes."""


def slices(z_CW: Tensor) -> Iterator[slice]:
    """Divide a chunk's rows into slices that a CPU's caches hold; elsewhere the chunk is one slice."""
    rows = len(z_CW)
    if z_CW.device.type == "cpu":
        rows = max(_CACHED_LOGITS // z_CW.shape[1], torch.get_num_threads())
    for first in range(0, max(len(z_CW), 1), max(rows, 1)):  # an empty chunk is one empty slice
        yield slice(first, min(first + rows, len(z_CW)))


def extract(
    z_CW: Tensor,
    vocab_size: int,
    label_C: Tensor,
    uniforms_CS: Tensor,
    top_k: int,
    top_p: float,
    edges: tuple[int, ...] = (),
) -> Targets[Tensor]:
    """Turn a chunk of logits, which is overwritten, into the targets of its C positions."""
    z_label_C = z_CW.gather(1, label_C[:, None])[:, 0]
    ids_CK, values_CK, share_C1, mean_C, mass_CN, mass_CG, norm_C1 = _scan(z_CW, vocab_size, top_k, edges)
    largest_rest_C1 = values_CK[:, top_k:]  # empty where the top-k is the vocabulary
    ids_CK, values_CK = ids_CK[:, :top_k], values_CK[:, :top_k]

    # softmax subtracts the rest's own maximum, whose entry is then 1 / Σ: exact however little mass the rest has.
    lse_rest_C1 = largest_rest_C1 - share_C1.log()
    top_C1 = values_CK[:, :1].clone()  # shifting by it first keeps digits that the logits' size would cost
    shifted_CO = torch.cat([values_CK, lse_rest_C1], dim=1) - top_C1
    log_sum_C1 = shifted_CO.logsumexp(1, keepdim=True)
    logp_CO = shifted_CO - log_sum_C1
    logp_CK, log_rest_C1 = logp_CO[:, :top_k], logp_CO[:, top_k:]
    gold_logp_C = z_label_C - top_C1[:, 0] - log_sum_C1[:, 0]

    entropy_C = -(logp_CK.exp() * logp_CK).sum(1)
    if log_rest_C1.shape[1]:
        entropy_C += log_rest_C1.exp()[:, 0] * (log_sum_C1[:, 0] - (mean_C - top_C1[:, 0]))

    # A slot is used while those before it hold less than top_p, so the one that reaches it is kept, and slot 0 always.
    # Rounding may let a sum exceed 1 early; 2 keeps every slot where all were asked for.
    used_CK = logp_CK.exp().cumsum(1) - logp_CK.exp() < (top_p if top_p < 1.0 else 2.0)
    dropped_CO = torch.cat([log_rest_C1, logp_CK.masked_fill(used_CK, -torch.inf)], dim=1)
    log_tail_C = dropped_CO.logsumexp(1)
    samples_CS, within_CS = _draw_outcome(dropped_CO, ids_CK, uniforms_CS)
    if lse_rest_C1.shape[1]:
        samples_CS = torch.where(samples_CS < 0, draw(z_CW, lse_rest_C1, mass_CN, within_CS), samples_CS)
    samples_CS = torch.where(log_tail_C[:, None] > -torch.inf, samples_CS, ids_CK[:, :1])  # no tail: weight 0, any id
    targets = Targets(ids_CK, logp_CK, samples_CS, log_tail_C, gold_logp_C, entropy_C)
    if edges:
        _keep_blocks(targets, used_CK, log_rest_C1, mass_CG, norm_C1, edges)
    targets.ids = torch.where(used_CK, ids_CK, ids_CK[:, :1])
    targets.logp = logp_CK.masked_fill(~used_CK, -torch.inf)
    return targets


def _keep_blocks(
    targets: Targets[Tensor],
    used_CK: Tensor,
    log_rest_CX: Tensor,
    mass_CG: Tensor,
    norm_C1: Tensor,
    edges: tuple[int, ...],
) -> None:
    """Enter the tail's mass by blocks, and how alike draws from it are where any are kept.

    `mass_CG` is each block's share of the rest, `norm_C1` the rest's ‖·‖₂. Slots that are not used join the rest.
    """
    log_tail_C1 = targets.log_tail[:, None]
    rest_C1 = (log_rest_CX - log_tail_C1).exp().sum(1, keepdim=True)  # zero where the top-k is the vocabulary
    dropped_CK = (targets.logp - log_tail_C1).exp().masked_fill_(used_CK, 0.0)
    ends = _ends(edges, mass_CG.device)
    block_CK = torch.bucketize(targets.ids.contiguous(), ends, right=True)
    share_CG = (rest_C1 * mass_CG).scatter_add_(1, block_CK, dropped_CK)
    inside_CG = torch.zeros_like(share_CG).scatter_add_(1, block_CK, used_CK.to(share_CG.dtype))
    # A block with tokens has mass, even where float32 has no number for it; one without has none, not a little.
    share_CG.clamp_(min=torch.finfo(share_CG.dtype).tiny)
    no_token_CG = inside_CG == ends.diff(prepend=ends.new_zeros(1))
    targets.log_blocks = (share_CG.log_() + log_tail_C1).masked_fill_(no_token_CG, -torch.inf)
    if targets.samples.shape[1]:
        square_C1 = (rest_C1 * norm_C1).square() + dropped_CK.square().sum(1, keepdim=True)
        targets.log_collision = square_C1.log_().masked_fill_(log_tail_C1 == -torch.inf, 0.0)
    targets.edges = edges


@lru_cache(maxsize=4)
def _ends(edges: tuple[int, ...], device: torch.device) -> Tensor:
    """Return where blocks end; kept, because a GPU is waited for while numbers are brought to it."""
    return torch.tensor(edges[1:], device=device)


def _scan(z_CW: Tensor, vocab_size: int, top_k: int, edges: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Read every logit of a chunk, and mask its top-k.

    Returns ids and values of the top-k and of the next token [C, K+1], the next token's share of the rest [C, 1],
    Σ rest·z [C], the rest's mass by blocks of 64 [C, N] and between `edges` [C, G], and its ‖·‖₂ [C, 1]; without a next
    token where the top-k is the vocabulary.
    """
    parts: list[tuple[Tensor, ...]] = []
    scratch_CW: Tensor | None = None
    for rows in slices(z_CW):
        part_CW = z_CW[rows]
        scratch_CW = torch.empty_like(part_CW) if scratch_CW is None else scratch_CW[: len(part_CW)]
        # One more than asked for: the rest's largest logit, which its softmax subtracts, without another pass.
        ids_CK, values_CK = top(part_CW, vocab_size, min(top_k + 1, vocab_size))
        part_CW.scatter_(1, ids_CK[:, :top_k], LOWEST)
        rest_CW = torch.softmax(part_CW, dim=1, out=scratch_CW)
        share_C1 = rest_CW.gather(1, ids_CK[:, top_k:])
        mass_CN = rest_CW.unflatten(1, (-1, BLOCK)).sum(2)
        mass_CG = norm_C1 = share_C1[:, :0]
        if edges:
            mass_CG = torch.stack([rest_CW[:, start:end].sum(1) for start, end in pairwise(edges)], dim=1)
            norm_C1 = torch.linalg.vector_norm(rest_CW, dim=1, keepdim=True)
        parts.append((ids_CK, values_CK, share_C1, rest_CW.mul_(part_CW).sum(1), mass_CN, mass_CG, norm_C1))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


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
    # topk promises no order among equals, and CPUs and GPUs differ; distinct integer keys leave it no choice. A float's
    # bits rise with its value, but for negative ones, whose other 31 bits are turned over.
    bits_CX = (values_CX.float() + 0.0).view(torch.int32)  # + 0.0 makes −0 and +0 equal
    return ((bits_CX ^ ((bits_CX >> 31) & 0x7FFFFFFF)).long() << 32) - ids_CX


def _draw_outcome(logp_CO: Tensor, ids_CK: Tensor, uniforms_CS: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from the tail's outcomes, the rest first (absent where the top-k is the vocabulary), then the slots.

    `logp_CO` holds their log-probabilities, −inf in kept slots. Returns ids [C, S], −1 where the rest was drawn, and
    what is left of each uniform to draw within the rest. Where there is no tail neither means anything.
    """
    slots = ids_CK.shape[1]
    rest_columns = logp_CO.shape[1] - slots
    # float64: in float32 a cumulative sum near 1 moves in steps of 6e-8, more than a token of a large tail has.
    cumulative_CO = (logp_CO - logp_CO.logsumexp(1, keepdim=True)).double().exp().nan_to_num(0.0).cumsum(1)
    goal_CS = uniforms_CS * cumulative_CO[:, -1:]
    outcome_CS = _first_above(cumulative_CO, goal_CS) - rest_columns
    drawn_CS = torch.where(outcome_CS < 0, -1, ids_CK.gather(1, outcome_CS.clamp(min=0)))
    return drawn_CS, (goal_CS / cumulative_CO[:, :1]).nan_to_num(0.0, posinf=1.0).clamp(max=1.0)


def draw(z_CW: Tensor, log_sum_C1: Tensor, mass_CN: Tensor, uniforms_CS: Tensor) -> Tensor:
    """Draw ids [C, S] in proportion to exp(z), by its cumulative sum: first the block, then the token.

    `log_sum_C1` is the log of Σ exp(z), and `mass_CN` each block's share of that sum.
    """
    mass_CN = mass_CN.double()
    cumulative_CN = mass_CN.cumsum(1)
    goal_CS = uniforms_CS * cumulative_CN[:, -1:]
    block_CS = _first_above(cumulative_CN, goal_CS)
    within_CS = goal_CS - (cumulative_CN - mass_CN).gather(1, block_CS)
    rows_C1 = torch.arange(len(z_CW), device=z_CW.device)[:, None]
    block_CSB = z_CW.unflatten(1, (-1, BLOCK))[rows_C1, block_CS].double()
    cumulative_SB = (block_CSB - log_sum_C1[:, :, None]).exp().cumsum(2).flatten(0, 1)
    token_S1 = _first_above(cumulative_SB, within_CS.reshape(-1, 1))
    return block_CS * BLOCK + token_S1.view_as(block_CS)


def _first_above(cumulative_XN: Tensor, goal_XS: Tensor) -> Tensor:
    """Return the first index whose cumulative sum exceeds the goal; the last with mass where rounding leaves none."""
    last_X1 = torch.searchsorted(cumulative_XN, cumulative_XN[:, -1:].contiguous())
    index_XS = torch.minimum(torch.searchsorted(cumulative_XN, goal_XS, right=True), last_X1)
    return index_XS.clamp_(max=cumulative_XN.shape[1] - 1)  # a NaN row is reported later, not here


def logp_and_rest(z_CW: Tensor, ids_CR: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities at ids, and the log of the rest's mass by a masked logsumexp; overwrites the logits."""
    z_CR = z_CW.gather(1, ids_CR)
    z_CW.scatter_(1, ids_CR, -torch.inf)
    log_rest_C = torch.cat([z_CW[rows].logsumexp(1) for rows in slices(z_CW)])
    logp_CO = torch.log_softmax(torch.cat([z_CR, log_rest_C[:, None]], dim=1), dim=1)
    return logp_CO[:, :-1], logp_CO[:, -1]


def log_sum_exp(z_CW: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's largest logit [C] and the log of Σ exp(z − it) [C]; overwrites the logits."""
    parts = []
    for rows in slices(z_CW):
        largest_C = z_CW[rows].amax(1)
        parts.append((largest_C, z_CW[rows].sub_(largest_C[:, None]).exp_().sum(1).log_()))
    largest_C, log_sum_C = (torch.cat(column) for column in zip(*parts, strict=True))
    return largest_C, log_sum_C
