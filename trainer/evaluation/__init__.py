"""How a model is judged: tasks, answers, metrics, intervals; generation and likelihood.

Imports the configuration, `methods` and `cache_builder`.
"""
