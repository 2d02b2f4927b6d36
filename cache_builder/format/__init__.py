"""Bytes and JSON of format version 1 and 2: manifest, ledger, records, Zarr shards; docs/format.md specifies them.

Numpy only. Imports `storage` and the root files.
"""
