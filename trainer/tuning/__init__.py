"""A grid of settings for one training, judged on validation data alone (§7.1): cells, the race, the table.

Imports every room of `trainer` but `cli`.
"""
