"""What a run will take, before it is run: steps, positions, files, bytes, memory.

Imports the configuration, `methods` and `cache_builder`; loads no weights.
"""
