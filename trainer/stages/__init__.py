"""The steps of a run: fine-tuning, the student's losses, cross-fitting, distillation, evaluation of every model.

Imports the rooms below it (`loop`, `loss`, `methods`, `evaluation`, `report` for the model cards), the configuration
and `cache_builder`.
"""
