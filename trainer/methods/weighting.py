"""How much a sequence leans to the teacher. All pure.

aw        w = σ(log(L_S / L_T)) = L_S / (L_S + L_T)        §6; L_T of the stage's checkpoint, L_S of the student SFT
hard aw   1 where w > ½ + δ, 0 where w < ½ − δ, else ½     Fig. 2
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def adaptive_weights(student_loss_N: np.ndarray, teacher_loss_N: np.ndarray, sharpness: float = 1.0) -> np.ndarray:
    """Return each sequence's weight of the teacher, f64 [N] in [0, 1] (§6).

    `w = L_S^s / (L_S^s + L_T^s)`, both losses summed over the same positions; s = 0 gives ½ everywhere, s → ∞ a hard
    choice. Where both losses are zero, or infinitely large, the two models are equal and w is ½.

    Raises:
        ValueError: the arrays differ in shape, or a loss is negative or NaN.
    """
    if student_loss_N.shape != teacher_loss_N.shape:
        raise ValueError(f"losses of different shapes: {student_loss_N.shape=}, {teacher_loss_N.shape=}")
    if not (np.all(student_loss_N >= 0) and np.all(teacher_loss_N >= 0)):
        raise ValueError("a loss is negative or NaN; losses are sums of −log-probabilities")
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.log(student_loss_N) - np.log(teacher_loss_N)
        weights = 1 / (1 + np.exp(-np.clip(sharpness * log_ratio, -700, 700)))
    return np.where(np.isnan(log_ratio), 0.5, weights)


def hard_weights(weights_N: np.ndarray, delta: float) -> np.ndarray:
    """Return 1 where w > ½ + δ, 0 where w < ½ − δ, else ½ (Fig. 2)."""
    return np.where(weights_N > 0.5 + delta, 1.0, np.where(weights_N < 0.5 - delta, 0.0, 0.5))


@dataclass(frozen=True)
class Weighting:
    """One row of the table below."""

    weights: Callable[[np.ndarray, float], np.ndarray]
    """From adaptive weights [N] and `distill.hard_aw_delta` to each sequence's weight of the teacher [N]."""
    adaptive: bool = True
    """Whether it needs the losses of student and teacher; else every sequence has the weight `distill.alpha`."""


WEIGHTINGS = {
    "constant": Weighting(lambda weights_N, delta: weights_N, adaptive=False),
    "aw": Weighting(lambda weights_N, delta: weights_N),
    "hard-aw": Weighting(hard_weights),
}
"""By the name that a method's row gives."""
