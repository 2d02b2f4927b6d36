"""Where a cache's files lie: a local folder here, any fsspec URL in `remote_store.py`.

    commit(key, data)    <key>.part ─ fsync ─ read back ─ rename to <key> ─ fsync folder: all of it or none

Keys are paths below the store with `/`. Reading what is not there raises; nothing is ever filled in.
"""

import errno
import hashlib
import os
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Protocol

from cache_builder.errors import CacheDamagedError, CacheWriteError
from cache_builder.storage.locks import LOCK_FOLDER, LocalLocks

PART_SUFFIX = ".part"
ARRIVING = f"arriving{PART_SUFFIX}"
"""The manifest of a cache that `footsteps cache push` or `pull` is bringing here."""
BESIDE = ("README.md", ".gitattributes")
"""What may lie beside a cache: the card of a shared one, and what the Hub adds."""


class Ranges(Protocol):
    """What reading chunks needs of a place that holds files."""

    def where(self, key: str) -> str:
        """Return how a message names the file."""

    def read_range(self, key: str, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`; CacheDamagedError where there are fewer."""

    def read_tail(self, key: str, size: int) -> bytes:
        """Return the last `size` bytes; CacheDamagedError where there are fewer."""


class Store(Ranges, Protocol):
    """What the format needs of a place that holds files."""

    def read(self, key: str) -> bytes:
        """Return a whole file; CacheDamagedError where there is none."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of every file below `prefix`, by its key below the store."""

    def exists(self, key: str) -> bool:
        """Say whether the file is there."""

    def commit(self, key: str, data: bytes) -> None:
        """Put a file there whole and durably, or not at all."""

    def remove(self, key: str) -> None:
        """Remove a file durably; none need be there."""

    def remove_tree(self, prefix: str) -> None:
        """Remove every file below `prefix`."""

    def hold(self, part: tuple[int, int]) -> AbstractContextManager[None]:
        """Be the only builder of this part; CacheBusyError names another holder."""

    def hand(self) -> AbstractContextManager[None]:
        """Work for the builder that holds the whole, as another process of it."""

    def stage(self) -> AbstractContextManager[None]:
        """Wait until no other builder is in a stage that one does for all."""


class LocalStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.locks = LocalLocks(folder)

    def where(self, key: str) -> str:
        return str(self.folder / key)

    def read(self, key: str) -> bytes:
        try:
            return (self.folder / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise CacheDamagedError(f"{self.where(key)} is damaged: the file is missing") from None

    def read_range(self, key: str, start: int, size: int) -> bytes:
        try:
            with (self.folder / key).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, start)
        except FileNotFoundError:
            raise CacheDamagedError(f"{self.where(key)} is damaged: the file is missing") from None
        if len(data) < size:
            raise CacheDamagedError(f"{self.where(key)} is damaged: it ends before byte {start + size:,}")
        return data

    def read_tail(self, key: str, size: int) -> bytes:
        try:
            total = (self.folder / key).stat().st_size
        except FileNotFoundError:
            raise CacheDamagedError(f"{self.where(key)} is damaged: the file is missing") from None
        if total < size:
            raise CacheDamagedError(f"{self.where(key)} is damaged: {total:,} bytes, too short to be a shard")
        return self.read_range(key, total - size, size)

    def sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        pending = [self.folder / prefix]
        while pending:
            folder = pending.pop()
            try:
                entries = list(os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                if entry.is_dir():
                    if entry.name != LOCK_FOLDER:
                        pending.append(Path(entry.path))
                else:
                    with suppress(FileNotFoundError):  # a file being written has just got its name
                        found[Path(entry.path).relative_to(self.folder).as_posix()] = entry.stat().st_size
        return found

    def exists(self, key: str) -> bool:
        return (self.folder / key).is_file()

    def commit(self, key: str, data: bytes) -> None:
        path = self.folder / key
        part = path.with_name(path.name + PART_SUFFIX)
        try:
            _make_folder(path.parent)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            raise write_error(str(path), len(data), error) from error
        if hashlib.sha256(part.read_bytes()).digest() != hashlib.sha256(data).digest():
            part.unlink()
            raise CacheWriteError(f"{path} does not read back as it was written; check the disk, then build again")
        part.replace(path)
        _sync_folder(path.parent)

    def remove(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)
        _sync_folder((self.folder / key).parent)

    def remove_tree(self, prefix: str) -> None:
        shutil.rmtree(self.folder / prefix, ignore_errors=True)

    def hold(self, part: tuple[int, int]) -> AbstractContextManager[None]:
        _make_folder(self.folder)
        return self.locks.hold(part)

    def hand(self) -> AbstractContextManager[None]:
        return self.locks.hand()

    def stage(self) -> AbstractContextManager[None]:
        return self.locks.stage()


def open_store(url: str) -> Store:
    """Return the store that a folder or fsspec URL names; nothing is created or checked."""
    protocol, separator, path = url.partition("://")
    if not separator:
        return LocalStore(Path(url))
    if protocol in ("file", "local"):
        return LocalStore(Path(path))
    if protocol == "hf" and not path.startswith("buckets/"):
        from cache_builder.storage.hub import HubStore

        return HubStore(url)
    from cache_builder.storage.object_store import RemoteStore

    return RemoteStore(url)


def write_error(where: str, size: int, error: OSError) -> CacheWriteError:
    """Turn a failed write into a message that says how to go on."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "no space is left on the device" if full else (error.strerror or str(error))
    mend = "free some space" if full else "mend that"
    return CacheWriteError(
        f"cannot write {where} ({size:,} bytes): {reason}; what is committed is safe: "
        f"{mend} and give the same command again to continue"
    )


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
