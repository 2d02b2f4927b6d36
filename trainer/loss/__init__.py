"""The distillation loss: fused into the head's product, inside the model's forward, and as a plain float64 reference.

Usable by any trainer. Imports `cache_builder.targets` and `cache_builder.models`.
"""
