"""Plan the work of a cache, do a builder's share of it, continue what was begun, complete what is whole.

Imports `capture`, `cache`, `models`, `data`, `format`, `storage`. Nothing here knows what runs a model.
"""
