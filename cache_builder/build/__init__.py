"""Plan the work of a cache, do a builder's share of it, continue what was begun, complete what is whole.

Imports `capture`, `cache`, `models`, `data`, `format`, `storage`. What runs a model is known by its protocol alone; but
`audit` compares a cache with the checkpoint in transformers, whatever engine gave it.
"""
