"""The maths of sparse targets: outcomes, divergences with their gradients, the tail by blocks and by draws.

Pure functions on tensors. Imports nothing but the root files.
"""
