"""A live teacher's divergences over the whole vocabulary, by autograd, and how far a cache's may be from them.

    forward KL    Σ_v p (log p − log q)          reverse KL    Σ_v q (log q − log p)
    TAID          π = softmax((1−t)·log q + t·log p), q constant:  Σ_v π (log π − log q)

A cache knows p on its support to a step of its codes, and the tail by samples or as one outcome. So its value of

    forward KL with samples    is off by the codes, and by the samples: variance P²/S · Var_tail(log q) at a position
    everything else            is a lower bound, up to the codes: K+G outcomes say less than V

Shapes: M positions, V vocabulary, K slots.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache_builder.data.batching import Batch
from cache_builder.models.lm_head import hidden_states_at
from cache_builder.targets.sparse import Targets
from cache_builder.targets.tail import Kept, Tail, choose_tail


def log_probabilities(model: nn.Module, batch: Batch, vocab_size: int) -> Tensor:
    """Return log softmax [M, V] at the positions, float32, differentiable: the ordinary way, with all logits."""
    hidden_MD, head = hidden_states_at(model, batch, vocab_size)
    bias_V = None if head.bias_V is None else head.bias_V[:vocab_size]
    logits_MV = F.linear(hidden_MD, head.weight_VD[:vocab_size], bias_V).float() * head.scale
    if head.softcap is not None:
        logits_MV = head.softcap * torch.tanh(logits_MV / head.softcap)
    return torch.log_softmax(logits_MV, dim=1)


def dense_divergence(
    logp_MV: Tensor, logq_MV: Tensor, divergence: str, parameter: float | None = None, temperature: float = 1.0
) -> Tensor:
    """Return the divergence [M], times T², differentiable through `logq_MV`."""
    logp_MV, logq_MV = _tempered(logp_MV, temperature), _tempered(logq_MV, temperature)
    value_M = {
        "forward_kl": lambda: _kl(logp_MV, logq_MV),
        "reverse_kl": lambda: _kl(logq_MV, logp_MV),
        "taid": lambda: _kl(_mixed(logp_MV, logq_MV.detach(), parameter), logq_MV),
        "jsd": lambda: _jsd(logp_MV, logq_MV, parameter),
    }[divergence]()
    return value_M * temperature**2


@dataclass(frozen=True)
class Allowed:
    """How far a cache's divergence may be from the dense one, by position."""

    variance_M: Tensor
    """Of the tail's samples; zero where they are not used."""
    codes_M: Tensor
    """Bound on what rounding the log-probabilities can change."""
    one_sided: bool
    """Whether the cache's value is a lower bound, so that nothing limits how far below it may be."""


def allowed_error(
    logp_MV: Tensor,
    logq_MV: Tensor,
    targets: Targets,
    steps_per_nat: int,
    divergence: str,
    parameter: float | None = None,
    temperature: float = 1.0,
    share_steps_per_nat: int | None = None,
) -> Allowed:
    """Say how far the divergence from `targets` may be from the dense one of the same p and q.

    A code is half a step off at most, and normalising the outcomes adds as much: every log p is off by a step δ at
    most. That changes Σ p log q by at most δ Σ p |log q|, reverse KL by δ, and forward KL on K+G outcomes by
    δ (1 + Σ p |log p − log q|); TAID's log π moves by 2tδ at most, and of the JSD only β of the mixture is p.
    """
    step = 1.0 / min(steps_per_nat, share_steps_per_nat or steps_per_nat)
    logp_MV, logq_MV = _tempered(logp_MV, temperature), _tempered(logq_MV, temperature)
    zero_M = torch.zeros_like(logp_MV[:, 0])
    kept = Kept(samples=targets.samples.shape[1], blocks=targets.log_blocks.shape[1])
    if choose_tail("auto", kept, divergence == "forward_kl" and temperature == 1.0) == Tail(sample_weight=1.0):
        tail_MV = logp_MV.exp().scatter(1, targets.ids, 0.0)
        mass_M = tail_MV.sum(1)
        share_MV = tail_MV / mass_M.clamp_min(1e-30)[:, None]
        mean_M = (share_MV * logq_MV).sum(1)
        variance_M = (share_MV * (logq_MV - mean_M[:, None]) ** 2).sum(1) / targets.samples.shape[1]
        return Allowed(mass_M**2 * variance_M, step * (logp_MV.exp() * logq_MV.abs()).sum(1), one_sided=False)
    if divergence == "reverse_kl":
        return Allowed(zero_M, zero_M + step * temperature, one_sided=True)
    from_MV = _mixed(logp_MV, logq_MV, parameter) if divergence == "taid" else logp_MV
    to_MV = _between(logp_MV, logq_MV, parameter) if divergence == "jsd" else logq_MV
    spread_M = (from_MV.exp() * (from_MV - to_MV).abs()).sum(1)
    times = {"forward_kl": 1.0, "taid": 2 * (parameter or 0), "jsd": parameter or 0}[divergence]
    return Allowed(zero_M, times * step * temperature * (1 + spread_M), one_sided=True)


def _tempered(log_MV: Tensor, temperature: float) -> Tensor:
    return log_MV if temperature == 1.0 else torch.log_softmax(log_MV / temperature, dim=1)


def _mixed(logp_MV: Tensor, logq_MV: Tensor, parameter: float | None) -> Tensor:
    assert parameter is not None
    return torch.log_softmax((1 - parameter) * logq_MV + parameter * logp_MV, dim=1)


def _between(logp_MV: Tensor, logq_MV: Tensor, beta: float | None) -> Tensor:
    assert beta is not None
    return torch.log(beta * logp_MV.exp() + (1 - beta) * logq_MV.exp())


def _kl(loga_MV: Tensor, logb_MV: Tensor) -> Tensor:
    return (loga_MV.exp() * (loga_MV - logb_MV)).sum(1)


def _jsd(logp_MV: Tensor, logq_MV: Tensor, beta: float | None) -> Tensor:
    assert beta is not None
    logm_MV = _between(logp_MV, logq_MV, beta)
    return beta * _kl(logp_MV, logm_MV) + (1 - beta) * _kl(logq_MV, logm_MV)
