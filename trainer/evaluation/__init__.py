"""How one model is judged: tasks, answers, metrics, intervals; generation and likelihood.

Imports `cache_builder` alone.
"""
