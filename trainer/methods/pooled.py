"""How much of the tail the draws stand for, one λ for a step: James and Stein's rule, moved once per optimizer step.

    c = Σ over the step's positions of w · P · (draws/m − fill)      [vocabulary]: the fill's error and the draws' noise
    v = Σ w² P² (1 − ‖p(· | tail)‖²) / m                             what the noise alone gives of ‖c‖²
    λ = max(0, 1 − mean v / mean ‖c‖²)                               means over the steps, the latest weigh most

The fill's error of one token adds up over positions and the noise does not: so λ rises with the size of a step and with
the student's distance, without being told of either. λ is fixed before a step begins, so that it is one for all its
micro-batches and processes, and does not follow the step's own noise.
"""

from dataclasses import dataclass

from cache_builder.targets.outcomes import pooled_weight

KEPT = 0.9
"""How much of a running mean a step leaves of it."""


@dataclass
class PooledWeight:
    """λ of the next step, and what moves it; saved with every checkpoint."""

    weight: float = 0.0
    """λ; 0, the fill alone, until a step has told."""
    error: float = 0.0
    """Running mean of ‖c‖²."""
    noise: float = 0.0
    """Running mean of v."""

    def update(self, error: float, noise: float) -> None:
        """Move λ after an optimizer step that had ‖c‖² = `error` and v = `noise` over all its processes."""
        keep = KEPT if self.error else 0.0
        self.error = keep * self.error + (1 - keep) * error
        self.noise = keep * self.noise + (1 - keep) * noise
        self.weight = pooled_weight(self.error, self.noise)
