"""How much a sequence leans to the teacher, and how far TAID has moved from student to teacher. All pure.

aw        w = σ(log(L_S / L_T)) = L_S / (L_S + L_T)        §6; L_T of the stage's checkpoint, L_S of the student SFT
hard aw   1 where w > ½ + δ, 0 where w < ½ − δ, else ½     Fig. 2
"""

import math
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


@dataclass
class TaidState:
    """TAID's interpolation t between student (0) and teacher (1), as its authors' code moves it (arXiv 2501.16937).

    rel = (previous − L) / (previous + 1e-15);  momentum = β·momentum + (1 − β)·rel
    t = min(1, max(t₀ + (1 − t₀)·step/steps, t + α·σ(momentum)·(1 − t)))
    """

    t: float
    momentum: float = 0.0
    previous_loss: float | None = None

    def update(
        self, loss: float, step: int, total_steps: int, *, start: float, alpha: float = 5e-4, beta: float = 0.99
    ) -> None:
        """Move t after an optimizer step that had the reduced loss `loss` (nats)."""
        linear = start + (1 - start) * step / total_steps
        if self.previous_loss is not None:
            relative = (self.previous_loss - loss) / (self.previous_loss + 1e-15)
            self.momentum = beta * self.momentum + (1 - beta) * relative
        adaptive = self.t + alpha * (1 - self.t) / (1 + math.exp(-self.momentum))
        self.t = min(1.0, max(linear, adaptive))
        self.previous_loss = loss
