"""The distillation loss: fused into the head's product, inside the model's forward, and as a plain float64 reference.

Usable by any trainer; docs/python.md has a loop of twenty lines. Imports `cache_builder.targets` and
`cache_builder.models`.
"""

from cache_builder.models.lm_head import Head
from trainer.loss.fused import LossOutput, distillation_loss
from trainer.loss.reference import reference_loss

__all__ = ["Head", "LossOutput", "distillation_loss", "reference_loss"]
