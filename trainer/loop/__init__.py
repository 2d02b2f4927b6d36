"""The one training loop: stages, batches, the reduction, what a resumed run must know.

Imports `loss`, `methods` and `cache_builder`.
"""
