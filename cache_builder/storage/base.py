"""What a place that holds a cache's files can do: three protocols, of which a reader needs the first alone.

    Reads        read, read_range, read_tail, sizes, exists
    Writes       commit: all of a file or none of it; remove
    BuildLocks   lock_part, join_as_worker, exclusive
    Store        the three together: `local.py`, `object_store.py`, `hub.py`; `open.py` opens one by its URL

Keys are paths below the store with `/`. Reading what is not there raises; nothing is ever filled in.
"""

from contextlib import AbstractContextManager
from typing import Protocol


class Ranges(Protocol):
    """What reading chunks needs of a place that holds files."""

    def where(self, key: str) -> str:
        """Return how a message names the file."""

    def read_range(self, key: str, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`; CacheDamagedError where there are fewer."""

    def read_tail(self, key: str, size: int) -> bytes:
        """Return the last `size` bytes; CacheDamagedError where there are fewer."""


class Reads(Ranges, Protocol):
    """What reading a cache needs."""

    def read(self, key: str) -> bytes:
        """Return a whole file; CacheDamagedError where there is none."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of every file below `prefix`, by its key below the store."""

    def size(self, key: str) -> int | None:
        """Return a file's size in bytes; None where there is none."""

    def exists(self, key: str) -> bool:
        """Say whether the file is there."""


class Writes(Protocol):
    """What changing a cache needs."""

    def commit(self, key: str, data: bytes) -> None:
        """Put a file there whole and durably, or not at all."""

    def remove(self, key: str) -> None:
        """Remove a file durably; none need be there."""

    def remove_tree(self, prefix: str) -> None:
        """Remove every file below `prefix`."""


class BuildLocks(Protocol):
    """Locks between those who build one cache; each ends with the process that holds it."""

    def lock_part(self, part: tuple[int, int]) -> AbstractContextManager[None]:
        """Be the only builder of part i of n; CacheBusyError names another one."""

    def join_as_worker(self) -> AbstractContextManager[None]:
        """Work for the builder that has locked the whole, as another process of it."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Wait until no other builder or worker is in such a block: for what one does for all."""


class Store(Reads, Writes, BuildLocks, Protocol):
    """A place in which caches are built and read."""
