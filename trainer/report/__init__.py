"""Run folders to one HTML page, a table in the terminal and a model card.

    run/        a run folder as plain records
    sections/   the page's sections, one file each
    plots/      the figures

Imports `evaluation`, `methods`, the configuration and `cache_builder`; never a model.
"""
