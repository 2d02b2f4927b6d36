"""Sparse targets, and the maths of distributions over K+1 outcomes: the K tokens of the support, and the tail as one.

    outcomes      u = (log p_1 … log p_K, log P)                P the mass of every token outside the support
    forward KL    Σ p (log p − log q)                           gradient for q's logits   q − p
    reverse KL    R = Σ q (log q − log p)                       q (log q − log p − R)
    TAID          π = softmax((1−t)·log q + t·log p), t·q const Σ π (log π − log q)       q − π
    tail token v  the tail's gradient, times q(v | tail)

With the tail as an outcome each is a true divergence: never negative, zero with zero gradient at q = p, a lower bound
of the one over the whole vocabulary, and equal to it where the support is the vocabulary.

Shapes: M positions, K slots, S tail samples, O = K + 1 outcomes (the tail last). Log-probabilities are natural logs.
An unused slot repeats slot 0's id and has log-probability −inf: an outcome that does not exist.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache_builder.format.records import Targets

_LOG_SMALLEST = -87.0
"""exp of it is about the smallest normal float32. In reverse KL it stands for an empty teacher tail; KL would be ∞."""


@dataclass(frozen=True)
class SparseTargets:
    """What one checkpoint says at M positions, as torch tensors."""

    ids_MK: Tensor
    """int64, by falling probability; unused slots repeat slot 0's id."""
    logp_MK: Tensor
    """float32; −inf in unused slots. Σ exp + exp(log_tail) = 1."""
    samples_MS: Tensor
    """int64, drawn from the tail; slot 0's id where the tail is empty."""
    log_tail_M: Tensor
    """float32, log of the mass outside the support; −inf where there is none."""
    entropy_M: Tensor
    """float32, of the full distribution: makes the value of forward KL with samples unbiased."""

    @classmethod
    def from_numpy(cls, targets: Targets) -> "SparseTargets":
        """Copy what the reader returns."""
        return cls(
            torch.from_numpy(targets.ids.astype(np.int64)),
            torch.from_numpy(targets.logp.astype(np.float32)),
            torch.from_numpy(targets.samples.astype(np.int64)),
            torch.from_numpy(targets.log_tail.astype(np.float32)),
            torch.from_numpy(targets.entropy.astype(np.float32)),
        )

    @classmethod
    def empty(cls, positions: int, device: torch.device | str = "cpu") -> "SparseTargets":
        """Targets that say nothing: no support, every token in the tail. Every divergence from them is zero."""
        ids = torch.zeros(positions, 0, dtype=torch.int64, device=device)
        zero = torch.zeros(positions, device=device)
        return cls(ids, torch.zeros(positions, 0, device=device), ids, zero, zero)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "SparseTargets":
        """Move every tensor to a device."""
        return SparseTargets(
            *(
                tensor.to(device, non_blocking=non_blocking)
                for tensor in (self.ids_MK, self.logp_MK, self.samples_MS, self.log_tail_M, self.entropy_M)
            )
        )


def outcomes(logp_MK: Tensor, log_tail_M: Tensor) -> Tensor:
    """Join support and tail to log-probabilities [M, O] of the K+1 outcomes, normalised to float rounding."""
    return torch.log_softmax(torch.cat([logp_MK, log_tail_M[:, None]], dim=1), dim=1)


def temper(logp_MO: Tensor, temperature: float) -> Tensor:
    """Raise K+1 outcomes to the power 1/T and normalise. The tail is tempered as the one outcome that it is."""
    return logp_MO if temperature == 1.0 else torch.log_softmax(logp_MO / temperature, dim=1)


def forward_kl(logp_MO: Tensor, logq_MO: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p‖q) [M] and its gradient for q's logits [M, O]."""
    return _kl(logp_MO, logq_MO), logq_MO.exp() - logp_MO.exp()


def reverse_kl(logp_MO: Tensor, logq_MO: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q‖p) [M] and its gradient for q's logits [M, O]; finite where p's tail is empty."""
    logp_MO = torch.where(logp_MO == -torch.inf, _LOG_SMALLEST, logp_MO)
    ratio_MO = torch.where(logq_MO == -torch.inf, 0.0, logq_MO - logp_MO)
    q_MO = logq_MO.exp()
    divergence_M = _kl(logq_MO, logp_MO)
    return divergence_M, q_MO * (ratio_MO - (q_MO * ratio_MO).sum(1, keepdim=True))


def taid(logp_MO: Tensor, logq_MO: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """KL(π‖q) [M] for the intermediate teacher π, a constant, and its gradient for q's logits [M, O]; 0 ≤ t ≤ 1."""
    if t == 0.0:
        return forward_kl(logq_MO, logq_MO)
    mixed_MO = logp_MO * t if t == 1.0 else logp_MO * t + logq_MO * (1.0 - t)
    return forward_kl(torch.log_softmax(mixed_MO, dim=1), logq_MO)


def bucket_kl(logp_a_MK: Tensor, log_tail_a_M: Tensor, logp_b_MK: Tensor, log_tail_b_M: Tensor) -> Tensor:
    """KL(a‖b) [M] of two distributions given on the same ids and the tail outside them, as on the probe."""
    return _kl(outcomes(logp_a_MK, log_tail_a_M), outcomes(logp_b_MK, log_tail_b_M))


def retained_mass_at_least(logp_MK: Tensor, log_tail_M: Tensor, vocab_size: int, temperature: float) -> Tensor:
    """Bound from below [M] the mass that the support would hold if the whole distribution were tempered; T ≥ 1.

    A tail of mass P over n tokens holds most at temperature T when it is spread evenly: n^(1 − 1/T) · P^(1/T).
    """
    outside_M = vocab_size - (logp_MK > -torch.inf).sum(1)
    log_tail_at_most_M = outside_M.log() * (1 - 1 / temperature) + log_tail_M / temperature
    log_support_M = (logp_MK / temperature).logsumexp(1)
    return torch.where(outside_M == 0, 1.0, torch.sigmoid(log_support_M - log_tail_at_most_M))


def tail_uniforms(seed: int, checkpoint: str, positions: np.ndarray, samples: int) -> np.ndarray:
    """Return uniforms [M, S] in (0, 1), float64: a pure function of (seed, checkpoint, global position, sample).

    So what is drawn does not depend on batches, shards, processes, or how many samples there are.
    """
    digest = hashlib.sha256(f"tail samples\0{seed}\0{checkpoint}".encode()).digest()
    key = np.uint64(int.from_bytes(digest[:8], "little"))
    counter = np.asarray(positions, np.uint64)[:, None] * np.uint64(1 << 20) + np.arange(samples, dtype=np.uint64)
    return ((_splitmix(_splitmix(counter) ^ key) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _splitmix(state: np.ndarray) -> np.ndarray:
    """Scramble uint64s (Steele, Lea and Flood 2014, the finaliser of SplitMix64)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _kl(loga_MO: Tensor, logb_MO: Tensor) -> Tensor:
    """Σ a (log a − log b) − a + b: KL for normalised a and b; no term is negative, and tiny ones keep their digits."""
    ratio_MO = loga_MO - logb_MO
    near_MO = ratio_MO.clamp(-0.5, 0.5)
    a_MO, b_MO = loga_MO.exp(), logb_MO.exp()
    terms_MO = torch.where(
        ratio_MO.abs() < 0.5, a_MO * (near_MO + torch.expm1(-near_MO)), a_MO * ratio_MO - a_MO + b_MO
    )
    return torch.where(loga_MO == -torch.inf, b_MO, terms_MO).sum(1)
