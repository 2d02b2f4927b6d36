"""What a run will take, before it is run: steps, positions, files, bytes, memory, GPU hours.

    corpus_size ─┐
    model_size ──┼─▶ plan ─▶ tables        rates: FLOP/s, as given or as this run has measured them
    the settings ┘

Imports the configuration, `methods` and `cache_builder`; loads no weights.
"""
