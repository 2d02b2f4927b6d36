"""Build and read caches of what a teacher's checkpoints say; `reader.py` documents the reading API.

>>> from cache_builder import open_cache
>>> cache = open_cache("runs/demo/cache")
>>> targets = cache.read(cache.checkpoints[-1], [7, 3])

Reading needs neither torch nor the trainer.
"""

from cache_builder.cache.reader import Cache, Targets, open_cache

__all__ = ["Cache", "Targets", "open_cache"]
