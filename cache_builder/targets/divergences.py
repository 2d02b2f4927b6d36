"""The divergences of a student q from a target p over K + G outcomes, each with its gradient for q's logits.

    forward KL    Σ p (log p − log q)                            q − p
    reverse KL    R = Σ q (log q − log p)                        q (log q − log p − R)
    TAID          π = softmax((1−t)·log q + t·log p), q const    Σ π (log π − log q)         q − π
    JSD           β·KL(p‖m) + (1−β)·KL(q‖m), m = β p + (1−β) q   (1−β) q (log q − log m − KL(q‖m))
    token v of a block   the block's gradient, times q(v | block)

To add one: a function from (log p [M, O], log q [M, O]) and its parameter, if any, to (value [M], gradient [M, O]), and
a row of DIVERGENCES. Only methods of tensors are used, so that reading the table imports no torch.

Shapes: M positions, O = K + G outcomes, the tail's G last; −inf is an outcome that does not exist. Natural logs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_LOG_SMALLEST = -87.0
"""exp of it is about the smallest normal float32. In reverse KL it stands for an empty teacher tail; KL would be ∞."""


def forward_kl(logp_MO: "Tensor", logq_MO: "Tensor") -> "tuple[Tensor, Tensor]":
    """KL(p‖q) [M] and its gradient for q's logits [M, O]."""
    return kl(logp_MO, logq_MO), logq_MO.exp() - logp_MO.exp()


def reverse_kl(logp_MO: "Tensor", logq_MO: "Tensor") -> "tuple[Tensor, Tensor]":
    """KL(q‖p) [M] and its gradient for q's logits [M, O]; finite where p's tail is empty."""
    logp_MO = logp_MO.masked_fill(logp_MO == -math.inf, _LOG_SMALLEST)
    return kl(logq_MO, logp_MO), _gradient_of_kl_from(logq_MO, logp_MO)


def taid(logp_MO: "Tensor", logq_MO: "Tensor", t: float) -> "tuple[Tensor, Tensor]":
    """KL(π‖q) [M] for the intermediate teacher π, a constant, and its gradient for q's logits [M, O]; 0 ≤ t ≤ 1."""
    if t == 0.0:
        return forward_kl(logq_MO, logq_MO)
    mixed_MO = logp_MO * t if t == 1.0 else logp_MO * t + logq_MO * (1.0 - t)
    return forward_kl(mixed_MO.log_softmax(1), logq_MO)


def jsd(logp_MO: "Tensor", logq_MO: "Tensor", beta: float) -> "tuple[Tensor, Tensor]":
    """The generalised Jensen–Shannon divergence [M] and its gradient for q's logits [M, O], 0 < β < 1.

    As GKD has it (arXiv 2306.13649). For β → 0 it is β·KL(p‖q), for β → 1 (1 − β)·KL(q‖p).
    """
    logm_MO = (logp_MO + math.log(beta)).logaddexp(logq_MO + math.log1p(-beta))
    value_M = beta * kl(logp_MO, logm_MO) + (1 - beta) * kl(logq_MO, logm_MO)
    return value_M, (1 - beta) * _gradient_of_kl_from(logq_MO, logm_MO)


def kl(loga_MO: "Tensor", logb_MO: "Tensor") -> "Tensor":
    """Σ a (log a − log b) − a + b: KL for normalised a and b; no term is negative, and tiny ones keep their digits."""
    ratio_MO = loga_MO - logb_MO
    near_MO = ratio_MO.clamp(-0.5, 0.5)
    a_MO, b_MO = loga_MO.exp(), logb_MO.exp()
    # x + expm1(−x) is x²/2 − …: where a and b nearly agree, a·x − a + b would cancel to noise.
    terms_MO = (a_MO * (near_MO + (-near_MO).expm1())).where(ratio_MO.abs() < 0.5, a_MO * ratio_MO - a_MO + b_MO)
    return b_MO.where(loga_MO == -math.inf, terms_MO).sum(1)


def _gradient_of_kl_from(logq_MO: "Tensor", logb_MO: "Tensor") -> "Tensor":
    """Gradient of Σ q (log q − log b) for q's logits, b a constant: q times its ratio's excess over the mean."""
    q_MO = logq_MO.exp()
    ratio_MO = (logq_MO - logb_MO).masked_fill(logq_MO == -math.inf, 0.0)  # 0 · (−inf) would be NaN
    return q_MO * (ratio_MO - (q_MO * ratio_MO).sum(1, keepdim=True))


@dataclass(frozen=True)
class Divergence:
    """One row of the table below."""

    function: "Callable[..., tuple[Tensor, Tensor]]"
    setting: str | None = None
    """The setting of `[distill]` that holds its parameter, which is then the function's third argument."""
    moves: bool = False
    """Whether TAID's rule moves the parameter from there to 1 during training."""
    samples: bool = False
    """Whether the stored tail samples may stand for the tail; elsewhere it is an outcome, or G."""
    needs_tail: bool = True
    """Whether it compares the student's mass in the tail with a teacher's that must be known."""

    def __call__(self, logp_MO: "Tensor", logq_MO: "Tensor", parameter: float | None) -> "tuple[Tensor, Tensor]":
        """Return value [M] and gradient [M, O]; `parameter` is given exactly where `setting` names one."""
        return self.function(logp_MO, logq_MO) if parameter is None else self.function(logp_MO, logq_MO, parameter)


DIVERGENCES = {
    "forward_kl": Divergence(forward_kl, samples=True, needs_tail=False),
    "reverse_kl": Divergence(reverse_kl),
    "taid": Divergence(taid, setting="taid_start", moves=True),
    "jsd": Divergence(jsd, setting="jsd_beta"),
}
"""By the name that a method's row gives."""
