"""The maths of sparse targets: K + 1 outcomes, divergences with their gradients, draws from the tail.

Pure functions on tensors. Imports nothing but the root files.
"""
