"""A model and sequences to targets: chunks of logits, their top-k and tail, losses; `backend` is the engines' protocol.

Imports `models`, `data`, `targets`, `format` and the root files; never `build` or `cache`.
"""
