"""Forward KL where samples stand for a share λ of the teacher's tail, and the λ that weighs bias against variance.

    D = (1 − λ) · KL on the outcomes  +  λ · (−Σ p̂ log q − H(p)),  p̂ = p on the support and P/S on each sample

Shapes: C positions, K slots, S tail samples, G blocks of the tail, O = K + G outcomes.
"""

import torch
from torch import Tensor

from cache_builder.targets.divergences import forward_kl
from cache_builder.targets.outcomes import adaptive_weight
from cache_builder.targets.sparse import Targets


def sampled_kl(
    logp_CO: Tensor, logq_CO: Tensor, slots: int, logq_samples_CS: Tensor, entropy_C: Tensor, sample_weight_C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward KL where samples stand for a share λ of the tail: value [C], gradient [C, O], λP/S and P/S, each [C].

    The gradient's tail is that of the outcomes: the samples' own − λP/S is a matter of single tokens.
    """
    value_C, grad_CO = forward_kl(logp_CO, logq_CO)
    p_CO, q_CO = logp_CO.exp(), logq_CO.exp()
    share_C = p_CO[:, slots:].sum(1) / logq_samples_CS.shape[1]
    cross_CK = torch.where(p_CO > 0, p_CO * logq_CO, 0.0)[:, :slots]  # 0 · (−inf) would be NaN
    # H(p) is that of the whole distribution, so the value is unbiased; at one position it may be negative.
    sampled_C = -cross_CK.sum(1) - share_C * logq_samples_CS.sum(1) - entropy_C
    grad_CO[:, slots:] = q_CO[:, slots:] - (1 - sample_weight_C[:, None]) * p_CO[:, slots:]
    # λ = 0 and λ = 1 are the outcomes and the samples to the bit, here and in lerp.
    return value_C.lerp(sampled_C, sample_weight_C), grad_CO, sample_weight_C * share_C, share_C


def sample_weight(
    targets: Targets[Tensor],
    logp_CG: Tensor,
    logq_CG: Tensor,
    logq_samples_CS: Tensor,
    norm_CG: Tensor,
    edges: tuple[int, ...],
) -> Tensor:
    """Return the λ [C] of the outcomes' target within the tail, f(v) = P_g/P · q(v | g); `norm_CG` is ‖q(· | g)‖₂."""
    log_share_CG = logp_CG - targets.log_tail[:, None]
    block_CS = torch.bucketize(targets.samples.contiguous(), targets.samples.new_tensor(edges[1:]), right=True)
    f_CS = (logq_samples_CS + (log_share_CG - logq_CG).gather(1, block_CS)).exp()
    f_square_C = (log_share_CG.exp() * norm_CG).square().nansum(1)  # an empty block's norm is 0 / 0
    weight_C = adaptive_weight(targets.log_collision[:, 0].exp(), f_CS, f_square_C)
    return torch.where(targets.log_tail > -torch.inf, weight_C, 0.0)
