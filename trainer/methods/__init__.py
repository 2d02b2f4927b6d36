"""What a method is: rows of a table that name a divergence, a schedule and a weighting; pure functions.

Imports `cache_builder` alone.
"""
