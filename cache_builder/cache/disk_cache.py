"""Chunks of a cache at a URL, kept on this machine in a bounded number of bytes, for any number of processes.

    <folder>/users             locked, shared, by every process that has the copy open; one alone counts anew
    <folder>/lock              locked for every change; its text is the bytes in use, those being written included
    <folder>/<group>/used      when a checkpoint, corpus or probe of one cache was last read
    <folder>/<group>/<block>   one chunk, or one shard's index, as the store gave it: it ends with its own CRC-32C

A block is as much as is read at once, not a shard: an epoch reads all chunks of all shards in another order each time,
so shards would be fetched whole for one chunk and dropped before the next. For the same reason what a checkpoint reads
never displaces its own blocks: where half of it fits, half of the reads stay here, and fewer under plain LRU
(`tools/bench_stream.py`). What goes is the checkpoint, or the other cache, that was used least recently.

A block is named by the cache's fingerprint and its file's SHA-256, and is checked when it is written and when it is
read. A process may be killed at any instant: what it left half written is never read, and counts until it is removed.
"""

import fcntl
import hashlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cache_builder.atomic import PART_SUFFIX
from cache_builder.errors import CacheWriteError
from cache_builder.format.manifest import CORPUS, Ledger
from cache_builder.format.zarr_shards import CRC_BYTES, crc32c
from cache_builder.storage.base import Ranges

DISK_BLOCK_BYTES = 4096
OWN_BYTES = 2 * DISK_BLOCK_BYTES
"""What the copy's own two files take."""
STAMP_SECONDS = 2.0
FREED_PART = 64
"""Removing begins where the copy is full, and frees at least this part of it."""


class LocalCopy:
    """A folder of blocks, whose files never take more than `limit_bytes` of the disk."""

    def __init__(self, folder: Path, limit_bytes: int, fingerprint: str) -> None:
        self.folder, self.limit_bytes, self.fingerprint = folder, limit_bytes, fingerprint
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("folder", "limit_bytes", "fingerprint")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def of_group(self, store: Ranges, group: str, files: Ledger) -> "GroupCopy":
        """Return the chunks of one group of the cache at `store`, read through this copy."""
        return GroupCopy(self, store, group, files)

    def group_folder(self, group: str) -> Path:
        """Return where a group's blocks lie; no name from a file is in it."""
        return self.folder / _digest(self.fingerprint, group)

    def read(self, folder: Path, name: str, fetch: Callable[[], bytes], genuine: Callable[[bytes], bool]) -> bytes:
        """Return a block: from here if it is here and `genuine`, else what `fetch` gives, which is then kept."""
        path = folder / name
        with suppress(OSError):
            data = path.read_bytes()
            if genuine(data):
                self._stamp(folder)
                return data
            self.discard(path)
        data = fetch()
        if self._works and genuine(data):
            self._keep(path, data)
        return data

    def discard(self, path: Path) -> None:
        """Remove a block, if it is there."""
        with suppress(OSError), self._account() as account:
            size = path.stat().st_size
            path.unlink()
            account.bytes -= cost(size)

    def _begin(self) -> None:
        self._works = True
        self._stamped: dict[Path, float] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            users = os.open(self.folder / "users", os.O_RDWR | os.O_CREAT, 0o644)
            weakref.finalize(self, os.close, users)
            with suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._count_anew()
            fcntl.flock(users, fcntl.LOCK_SH)
            with self._account() as account:
                self._make_room(account, 0, spared=set())
        except OSError as error:
            raise CacheWriteError(
                f"cannot keep a copy of the cache in {self.folder}: {error.strerror or error}; mend that, or set "
                "cache.local_copy to another folder, or cache.local_copy_bytes to 0"
            ) from error

    def _count_anew(self) -> None:
        """Remove what was left half written, and count the rest; nobody else has the copy open."""
        with self._account() as account:
            account.bytes = 0
            for path in self.folder.glob("*/*"):
                if path.name.endswith(PART_SUFFIX):
                    path.unlink()
                else:
                    account.bytes += cost(path.stat().st_size)

    def _keep(self, path: Path, data: bytes) -> None:
        """Write a block where there is room for it; its bytes are counted before there is anything on the disk."""
        needed, counted = cost(len(data)), False
        part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}{PART_SUFFIX}")
        try:
            with self._account() as account:
                if not self._make_room(account, needed, {path.parent, self.group_folder(CORPUS)}):
                    return
                account.bytes += needed
                counted = True
            path.parent.mkdir(exist_ok=True)
            part.write_bytes(data)
            self._stamp(path.parent)
            with self._account():
                if not path.exists():
                    part.rename(path)
                    counted = False
        except FileNotFoundError:
            pass  # the group was removed meanwhile
        except OSError as error:
            self._works = False
            warnings.warn(f"no more is kept in {self.folder}: {error.strerror or error}", stacklevel=2)
        finally:
            if counted:
                with suppress(OSError), self._account() as account:
                    part.unlink(missing_ok=True)
                    account.bytes -= needed

    def _make_room(self, account: "Account", needed: int, spared: set[Path]) -> bool:
        """Remove the blocks of what was used least recently until `needed` bytes fit; say whether they do."""
        limit = self.limit_bytes - OWN_BYTES
        if account.bytes + needed <= limit:
            return True
        target = max(0, limit - max(needed, limit // FREED_PART))
        groups = [folder for folder in self.folder.iterdir() if folder.is_dir() and folder not in spared]
        for folder in sorted(groups, key=_last_used):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if account.bytes <= target:
                        return True
                    if entry.name != "used" and not entry.name.endswith(PART_SUFFIX):
                        size = entry.stat().st_size
                        os.unlink(entry.path)
                        account.bytes -= cost(size)
            with suppress(OSError):
                (folder / "used").unlink(missing_ok=True)
                folder.rmdir()
        return account.bytes + needed <= limit

    def _stamp(self, folder: Path) -> None:
        """Note that a group is in use, every few seconds."""
        now = time.monotonic()
        if now - self._stamped.get(folder, -STAMP_SECONDS) >= STAMP_SECONDS:
            self._stamped[folder] = now
            with suppress(OSError):
                (folder / "used").touch()

    @contextmanager
    def _account(self) -> Iterator["Account"]:
        """Be alone in changing the copy. The file is opened each time, as a lock is shared by those forked from one."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            account = Account(descriptor)
            try:
                yield account
            finally:
                account.save()
        finally:
            os.close(descriptor)


class Account:
    """The bytes in use, as the lock's file has them."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.bytes = int(os.pread(descriptor, 20, 0) or b"0")

    def save(self) -> None:
        """Write them back."""
        os.pwrite(self.descriptor, b"%020d" % max(0, self.bytes), 0)


class GroupCopy:
    """Reads ranges of one group's files through the copy."""

    def __init__(self, copy: LocalCopy, store: Ranges, group: str, files: Ledger) -> None:
        self.copy, self.store = copy, store
        self.folder = copy.group_folder(group)
        self._entries = {f"{group}/{file}": entry for file, entry in files.items()}

    def where(self, key: str) -> str:
        return self.store.where(key)

    def read_range(self, key: str, start: int, size: int) -> bytes:
        """Return a chunk; one that is not in the ledger is passed on, for its reader to refuse, and not kept."""
        entry = self._entries[key]
        committed = frozenset(entry.chunk_crc32c or [])

        def genuine(data: bytes) -> bool:
            return len(data) == size and _is_whole(data) and _crc(data) in committed

        name = _digest(entry.sha256, str(start), str(size))
        data = self.copy.read(self.folder, name, lambda: self.store.read_range(key, start, size), genuine)
        if not genuine(data):
            self.copy.discard(self.folder / self._tail_name(key))
        return data

    def read_tail(self, key: str, size: int) -> bytes:
        """Return a shard's index."""
        name = self._tail_name(key)
        return self.copy.read(
            self.folder,
            name,
            lambda: self.store.read_tail(key, size),
            lambda data: len(data) == size and _is_whole(data),
        )

    def _tail_name(self, key: str) -> str:
        return _digest(self._entries[key].sha256, "tail")


def cost(size: int) -> int:
    """Return what a file of `size` bytes takes of a disk."""
    return -(-size // DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES


def _crc(data: bytes) -> int:
    return int.from_bytes(data[-CRC_BYTES:], "little")


def _is_whole(data: bytes) -> bool:
    return len(data) > CRC_BYTES and crc32c(data[:-CRC_BYTES]) == _crc(data)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


def _last_used(folder: Path) -> float:
    try:
        return (folder / "used").stat().st_mtime
    except OSError:
        return 0.0
