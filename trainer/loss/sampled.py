"""Forward KL where samples stand for a share λ of the teacher's tail, and the λ that weighs bias against variance.

    D = (1 − λ) · KL on the outcomes  +  λ · (−Σ p̂ log q − H(p)),  p̂ = p on the support and P/S on each sample

Shapes: C positions, K slots, S tail samples, G blocks of the tail, O = K + G outcomes.
"""

import torch
from torch import Tensor

from cache_builder.targets.divergences import forward_kl
from cache_builder.targets.sparse import Targets


def sampled_kl(
    logp_CO: Tensor, logq_CO: Tensor, slots: int, logq_samples_CS: Tensor, entropy_C: Tensor, sample_weight_C: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward KL where samples stand for a share λ of the tail: value [C], gradient [C, O], what each stands for [C].

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
    return value_C.lerp(sampled_C, sample_weight_C), grad_CO, sample_weight_C * share_C


def adaptive_weight(
    targets: Targets[Tensor],
    logp_CG: Tensor,
    logq_CG: Tensor,
    logq_samples_CS: Tensor,
    norm_CG: Tensor,
    edges: tuple[int, ...],
) -> Tensor:
    """Return λ = B / (B + V/S) [C]: the bias of the outcomes' target against the variance of the samples'.

    f(v) = P_g/P · q(v | g) is the outcomes' target within the tail, and B = ‖p‖² − 2 p·f + ‖f‖², of which the samples
    estimate p·f as f's mean over them. `norm_CG` is ‖q(· | g)‖₂.
    """
    log_tail_C1 = targets.log_tail[:, None]
    log_share_CG = logp_CG - log_tail_C1
    block_CS = torch.bucketize(targets.samples.contiguous(), targets.samples.new_tensor(edges[1:]), right=True)
    f_CS = (logq_samples_CS + (log_share_CG - logq_CG).gather(1, block_CS)).exp()
    f_square_C = (log_share_CG.exp() * norm_CG).square().nansum(1)  # an empty block's norm is 0 / 0
    p_square_C = targets.log_collision[:, 0].exp()
    bias_C = (p_square_C - 2 * f_CS.mean(1) + f_square_C).clamp(min=0.0)
    variance_C = (1 - p_square_C).clamp(min=0.0) / targets.samples.shape[1]
    known_C = (log_tail_C1[:, 0] > -torch.inf) & (bias_C > 0)
    return torch.where(known_C, bias_C / (bias_C + variance_C), 0.0)
