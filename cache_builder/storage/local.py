"""A cache in a local folder.

commit(key, data)    <key>.part ─ fsync ─ read back ─ rename to <key> ─ fsync folder: all of it or none
"""

import errno
import hashlib
import os
import shutil
import stat
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cache_builder.atomic import PART_SUFFIX, rename_synced, sync_folder, write_synced
from cache_builder.errors import CacheDamagedError, CacheWriteError
from cache_builder.storage.holders import LOCK_FOLDER

if TYPE_CHECKING:
    from cache_builder.storage.locks import LocalLocks


_KERNEL = ("/proc/", "/sys/", "/dev/")


class LocalStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def where(self, key: str) -> str:
        return str(self.folder / key)

    def read(self, key: str) -> bytes:
        path = self.folder / key
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                self._check_link(key)
            # Opening a pipe waits for whoever writes into it, and a device may never end.
            elif not stat.S_ISREG(mode):
                raise self._irregular(key)
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise CacheDamagedError(f"{self.where(key)} is damaged: the file is missing") from None

    def read_range(self, key: str, start: int, size: int) -> bytes:
        try:
            with (self.folder / key).open("rb", buffering=0) as file:
                file.seek(start)
                data = file.read(size)
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
        pending = [prefix]
        while pending:
            folder = pending.pop()
            try:
                entries = list(os.scandir(self.folder / folder))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                key = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    self._check_link(key)
                if entry.is_dir():
                    if entry.name != LOCK_FOLDER:
                        pending.append(key)
                else:
                    with suppress(FileNotFoundError):  # a file being written has just got its name
                        status = entry.stat()
                        if not stat.S_ISREG(status.st_mode):
                            raise self._irregular(key)
                        found[key] = status.st_size
        return found

    def size(self, key: str) -> int | None:
        path = self.folder / key
        return path.stat().st_size if path.is_file() else None

    def exists(self, key: str) -> bool:
        return (self.folder / key).is_file()

    def commit(self, key: str, data: bytes) -> None:
        path = self.folder / key
        # Without the process in its name: the next builder of this file replaces what a killed one left.
        part = path.with_name(path.name + PART_SUFFIX)
        try:
            _make_folder(path.parent)
            write_synced(part, data)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise write_error(str(path), len(data), error) from error
        # Read back while it has no name that anyone reads: some network file systems report a failed write only here,
        # and once renamed the file would be in the way of a good one.
        if hashlib.sha256(part.read_bytes()).digest() != hashlib.sha256(data).digest():
            part.unlink()
            raise CacheWriteError(f"{path} does not read back as it was written; check the disk, then build again")
        rename_synced(part, path)

    def remove(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)
        sync_folder((self.folder / key).parent)

    def remove_tree(self, prefix: str) -> None:
        shutil.rmtree(self.folder / prefix, ignore_errors=True)

    def lock_part(self, part: tuple[int, int]) -> AbstractContextManager[None]:
        _make_folder(self.folder)
        return self._locks().lock_part(part)

    def join_as_worker(self) -> AbstractContextManager[None]:
        return self._locks().join_as_worker()

    def exclusive(self) -> AbstractContextManager[None]:
        return self._locks().exclusive()

    def _check_link(self, key: str) -> None:
        """Refuse a link to a folder, which may lead round in a circle, and to what only looks like a file.

        A link to a file may lead out of the folder, as those of the hub's snapshots do: what is read through it is
        compared with a digest like any other file.
        """
        target = os.path.realpath(self.folder / key)
        try:
            found = os.stat(target)
        except OSError:  # it leads to nothing, or to itself
            raise self._irregular(key) from None
        # What the kernel makes up is a regular file by its mode, and reading it may wait.
        made_up = target.startswith(_KERNEL) or not found.st_size
        if not stat.S_ISREG(found.st_mode) or made_up:
            raise CacheDamagedError(
                f"{self.where(key)} is a link to {target}, which is no plain file; a cache's links lead to files that "
                "hold something: copy it with what its links lead to (cp -rL), or `footsteps cache pull` it"
            )

    def _irregular(self, key: str) -> CacheDamagedError:
        return CacheDamagedError(f"{self.where(key)} is damaged: a pipe, device, folder or broken link, not a file")

    def _locks(self) -> "LocalLocks":
        # Imported here, because reading a cache must not need `fcntl`, which Windows and WebAssembly do not have.
        from cache_builder.storage.locks import LocalLocks

        return LocalLocks(self.folder)


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
    """Make a folder and those above it, each durable: a file in a folder whose name is lost is lost too."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
