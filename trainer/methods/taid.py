"""How far TAID has moved from student to teacher: t, once per optimizer step, by its authors' rule (arXiv 2501.16937).

rel = (previous − L) / (previous + 1e-15);  momentum = β·momentum + (1 − β)·rel
t = min(1, max(t₀ + (1 − t₀)·step/steps, t + α·σ(momentum)·(1 − t)))
"""

import math
from dataclasses import dataclass

ALPHA, BETA = 5e-4, 0.99
"""The authors' own α and β."""


@dataclass
class TaidState:
    """t between student (0) and teacher (1), and what moves it; saved with every checkpoint."""

    t: float
    momentum: float = 0.0
    previous_loss: float | None = None

    def update(self, loss: float, step: int, total_steps: int, *, start: float) -> None:
        """Move t after the optimizer step of number `step`, from 0, that had the reduced loss `loss` (nats).

        As in the authors' code t at step s is at least t₀ + (1 − t₀)·(s − 1)/steps, so the last step is not quite at 1.
        """
        linear = start + (1 - start) * step / total_steps
        if self.previous_loss is not None:
            relative = (self.previous_loss - loss) / (self.previous_loss + 1e-15)
            self.momentum = BETA * self.momentum + (1 - BETA) * relative
        adaptive = self.t + ALPHA * (1 - self.t) / (1 + math.exp(-self.momentum))
        self.t = min(1.0, max(linear, adaptive))
        self.previous_loss = loss
