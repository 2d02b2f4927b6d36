"""The steps of a run that update weights: fine-tuning, distillation, cross-fitting, the student's losses.

Imports `loop`, `loss`, `methods`, the configuration and `cache_builder`.
"""
