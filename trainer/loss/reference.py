"""The loss by the book: whole rows of float64 probabilities and autograd, none of the kernel's formulas; slow.

    D(p, q) with p, q on the K + G outcomes, or p̂ over the vocabulary where samples stand for the tail
    (1 − λ) of the one and λ of the other where both do
    loss = Σ_m divergence_weight_m · D_m + ce_weight_m · CE_m

What `fused.py` computes is tested against this, and a kernel of anybody's can be.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from cache_builder.models.lm_head import Head
from cache_builder.targets.divergences import DIVERGENCES
from cache_builder.targets.sparse import Targets
from cache_builder.targets.tail import Kept, Tail, choose_tail
from trainer.loss.fused import LossOutput


def reference_loss(
    hidden_MD: Tensor,
    head: Head,
    targets: Targets[Tensor],
    label_M: Tensor,
    divergence_weight_M: Tensor,
    ce_weight_M: Tensor,
    *,
    divergence: str = "forward_kl",
    parameter: float | None = None,
    temperature: float = 1.0,
    tail: Tail | None = None,
) -> LossOutput:
    """Compute in float64 what `distillation_loss` computes; here all but λ are differentiable, and what moves it."""
    q_MV = _student(hidden_MD, head)
    if tail is None:
        kept = Kept(targets.samples.shape[1], targets.log_blocks.shape[1])
        tail = choose_tail("auto", kept, DIVERGENCES[divergence].samples and temperature == 1.0)
    values, weights = [], []
    for m, q_V in enumerate(q_MV):
        p, q = (_tempered(mass, temperature) for mass in _outcomes(targets, m, q_V, tail.by_block))
        weight = _adaptive_weight(targets, m, q_V, tail) if tail.sample_weight is None else tail.sample_weight
        value = q_V.new_zeros(())
        if weight < 1:
            value = value + (1 - weight) * PLAIN[divergence](p, q, parameter or 0.0) * temperature**2
        if weight > 0:
            cross = -(_sampled_teacher(targets, m, len(q_V)) * q_V.log()).sum()
            value = value + weight * (cross - targets.entropy[m])
        values.append(value)
        weights.append(float(weight))
    divergence_M = torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)
    ce_M = -q_MV.log().gather(1, label_M[:, None])[:, 0]
    loss = (divergence_weight_M * divergence_M + ce_weight_M * ce_M).sum()
    weight_M = torch.tensor(weights, dtype=torch.float64)
    return LossOutput(loss, divergence_M, ce_M, weight_M, *_pooled(targets, q_MV.detach(), divergence_weight_M, tail))


def _pooled(targets: Targets[Tensor], q_MV: Tensor, weight_M: Tensor, tail: Tail) -> tuple[Tensor, Tensor]:
    """Σ w P (draws/S − f) [V], and the sum of its terms' variances over the draws, Σ_v of each."""
    if not tail.pooled:
        return q_MV.new_zeros(0), q_MV.new_zeros(())
    error_V, noise = q_MV.new_zeros(q_MV.shape[1]), q_MV.new_zeros(())
    for m, q_V in enumerate(q_MV):
        mass, draws = targets.log_tail[m].double().exp(), targets.samples.shape[1]
        counts_V = torch.bincount(targets.samples[m], minlength=len(q_V))
        for inside, block_mass in _blocks(targets, m, len(q_V), tail.by_block):
            error_V[inside] -= weight_M[m] * block_mass * q_V[inside] / q_V[inside].sum()
        error_V += weight_M[m] * mass * counts_V / draws
        noise += (weight_M[m] * mass) ** 2 * (1 - targets.log_collision[m, 0].double().exp()) / draws
    return error_V, noise


def _student(hidden_MD: Tensor, head: Head) -> Tensor:
    logits_MV = hidden_MD.double() @ head.weight_VD.double()[: head.vocab_size].T
    if head.bias_V is not None:
        logits_MV = logits_MV + head.bias_V.double()[: head.vocab_size]
    logits_MV = logits_MV * head.scale
    if head.softcap is not None:
        logits_MV = head.softcap * torch.tanh(logits_MV / head.softcap)
    return torch.softmax(logits_MV, dim=1)


def _sampled_teacher(targets: Targets[Tensor], m: int, vocab_size: int) -> Tensor:
    """Position m's target [V] where each of the S samples stands for a share of the tail's mass."""
    used = targets.logp[m] > -torch.inf
    p_V = torch.zeros(vocab_size, dtype=torch.float64)
    p_V[targets.ids[m][used]] = targets.logp[m][used].double().exp()
    for sample in targets.samples[m]:
        p_V[sample] += targets.log_tail[m].double().exp() / targets.samples.shape[1]
    return p_V


def _adaptive_weight(targets: Targets[Tensor], m: int, q_V: Tensor, tail: Tail) -> float:
    """λ = B / (B + V/S), with the outcomes' target f within the tail written out over the vocabulary."""
    q_V, mass = q_V.detach(), targets.log_tail[m].double().exp()
    if mass == 0:
        return 0.0
    f_V = torch.zeros_like(q_V)
    for inside, block_mass in _blocks(targets, m, len(q_V), tail.by_block):
        f_V[inside] = block_mass / mass * q_V[inside] / q_V[inside].sum()
    p_square = float(targets.log_collision[m, 0].double().exp())
    bias = max(0.0, float(p_square - 2 * f_V[targets.samples[m]].mean() + f_V.square().sum()))
    variance = (1 - p_square) / targets.samples.shape[1]
    return bias / (bias + variance) if bias > 0 else 0.0


def _blocks(targets: Targets[Tensor], m: int, vocab_size: int, by_block: bool) -> list[tuple[Tensor, Tensor]]:
    """The tail's blocks at position m: which tokens [V], and the teacher's mass; without those that have no token."""
    outside = torch.ones(vocab_size, dtype=torch.bool)
    outside[targets.ids[m][targets.logp[m] > -torch.inf]] = False
    if not by_block:
        found = [(outside, targets.log_tail[m].double().exp())]
    else:
        at = torch.arange(vocab_size)
        spans = [outside & (at >= start) & (at < end) for start, end in pairwise(targets.edges)]
        found = list(zip(spans, targets.log_blocks[m].double().exp(), strict=True))
    return [(inside, mass) for inside, mass in found if inside.any()]


def _outcomes(targets: Targets[Tensor], m: int, q_V: Tensor, by_block: bool) -> tuple[Tensor, Tensor]:
    """Masses of teacher and student on position m's K + G outcomes; without blocks where nothing is in them."""
    used = targets.logp[m] > -torch.inf
    blocks = _blocks(targets, m, len(q_V), by_block)
    p = torch.cat([targets.logp[m][used].double().exp(), *(mass[None] for _, mass in blocks)])
    q = torch.cat([q_V[targets.ids[m][used]], *(q_V[inside].sum()[None] for inside, _ in blocks)])
    return p, q


def _tempered(mass: Tensor, temperature: float) -> Tensor:
    powered = mass ** (1 / temperature)
    return powered / powered.sum()


def _kl(a: Tensor, b: Tensor) -> Tensor:
    return (torch.special.xlogy(a, a) - a * b.log()).sum()


def _taid(p: Tensor, q: Tensor, t: float) -> Tensor:
    mixed = q.detach() ** (1 - t) * p**t
    return _kl(mixed / mixed.sum(), q)


def _jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    m = beta * p + (1 - beta) * q
    return beta * _kl(p, m) + (1 - beta) * (q * (q.log() - m.log())).sum()


PLAIN: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward_kl": lambda p, q, _: _kl(p, q),
    "reverse_kl": lambda p, q, _: (q * (q.log() - p.log())).sum(),
    "taid": _taid,
    "jsd": _jsd,
}
"""Each divergence of DIVERGENCES in its textbook form, from masses on outcomes."""
