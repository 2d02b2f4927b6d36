"""One cache, opened or written: the reader, the commit protocol, the chunks held in memory, verification.

Numpy only, so that a cache is read without torch. Imports `format`, `storage` and the root files.
"""
