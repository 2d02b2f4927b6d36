"""Distributions over K + G outcomes: the K tokens of the support, and the tail in G blocks of ids, or as one.

    u = (log p_1 … log p_K, log P_1 … log P_G)        P_g the mass of every token of block g outside the support

With the tail among the outcomes each divergence (`divergences.py`) is a true one: never negative, zero with zero
gradient at q = p, a lower bound of the one over the whole vocabulary, and equal to it where the support is all of it.

Shapes: M positions, K slots, G blocks, O = K + G outcomes (the tail last). Natural logs. An unused slot has
log-probability −inf: an outcome that does not exist.
"""

import torch
from torch import Tensor

from cache_builder.targets.divergences import kl


def outcomes(logp_MK: Tensor, log_tail_MG: Tensor) -> Tensor:
    """Join support and tail to log-probabilities [M, O] of the outcomes, normalised to float rounding."""
    return torch.log_softmax(torch.cat([logp_MK, log_tail_MG], dim=1), dim=1)


def temper(logp_MO: Tensor, temperature: float) -> Tensor:
    """Raise outcomes to the power 1/T and normalise. A block of the tail is tempered as the one outcome that it is."""
    return logp_MO if temperature == 1.0 else torch.log_softmax(logp_MO / temperature, dim=1)


def bucket_kl(logp_a_MK: Tensor, log_tail_a_M: Tensor, logp_b_MK: Tensor, log_tail_b_M: Tensor) -> Tensor:
    """KL(a‖b) [M] of two distributions given on the same ids and the tail outside them, as on the probe."""
    return kl(outcomes(logp_a_MK, log_tail_a_M[:, None]), outcomes(logp_b_MK, log_tail_b_M[:, None]))


def adaptive_weight(p_square_M: Tensor, f_at_samples_MS: Tensor, f_square_M: Tensor) -> Tensor:
    """Return λ = B / (B + V/S) [M]: the bias of a target f within the tail against the variance of S draws from it.

    B = ‖p‖² − 2 p·f + ‖f‖², of which the draws estimate p·f as f's mean over them; V = 1 − ‖p‖². Zero where B is.
    """
    bias_M = (p_square_M - 2 * f_at_samples_MS.mean(1) + f_square_M).clamp(min=0.0)
    variance_M = (1 - p_square_M).clamp(min=0.0) / f_at_samples_MS.shape[1]
    return torch.where(bias_M > 0, bias_M / (bias_M + variance_M), 0.0)


def pooled_weight(error: float, noise: float) -> float:
    """Return λ = max(0, 1 − noise / error): of a sum's square, the share that the draws' noise does not explain."""
    return max(0.0, 1 - noise / error) if error > 0 else 0.0


def retained_mass_at_least(logp_MK: Tensor, log_tail_M: Tensor, vocab_size: int, temperature: float) -> Tensor:
    """Bound from below [M] the mass that the support would hold if the whole distribution were tempered; T ≥ 1.

    A tail of mass P over n tokens holds most at temperature T when it is spread evenly: n^(1 − 1/T) · P^(1/T).
    """
    outside_M = vocab_size - (logp_MK > -torch.inf).sum(1)
    log_tail_at_most_M = outside_M.log() * (1 - 1 / temperature) + log_tail_M / temperature
    log_support_M = (logp_MK / temperature).logsumexp(1)
    return torch.where(outside_M == 0, 1.0, torch.sigmoid(log_support_M - log_tail_at_most_M))
