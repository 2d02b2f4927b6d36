"""File locks between the builders of one local cache, so that two never do the same work.

    <cache>/.locks/part-<i>-of-<n>    held with flock while part i of n is being built; the text names the holder
    <cache>/.locks/worker-<id>        held with flock by a process that works for a holder (an actor on a cluster)
    <cache>/.locks/exclusive          held with flock during what one builder does for all
    <cache>/.locks/.lock              held with flock while the files beside it are made and removed

The kernel drops a lock when its holder dies, however it dies; a file system shared by several hosts tells them of each
other's locks only on files that are open for writing, as all of these are. The folder is removed with the last holder,
so a finished cache holds no trace of who built it.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache_builder.errors import CacheBusyError, CacheWriteError
from cache_builder.storage.holders import EXCLUSIVE, LOCK_FOLDER, busy_message, holder_name, part_of, parts_clash

WORKERS_SECONDS = 120.0
"""How long a new builder waits for the workers of one that died; they notice it within seconds."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for this folder; makes the folder."""
    path = folder / ".lock"
    while True:
        if folder.is_file():
            raise NotADirectoryError(str(folder))
        with suppress(FileNotFoundError, FileExistsError):  # the folder was removed in between
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            lock_file(descriptor, path)
            # Its last holder removed the file while this process waited for it: the lock would be on a file that nobody
            # else opens.
            if _is_still_at(path, descriptor):
                break
            os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def only_one_in(folder: Path, what: str) -> Iterator[None]:
    """Be the only process that does `what` in a folder until the block ends; makes the folder.

    Raises:
        CacheBusyError: another process does it; the message names it.
    """
    path = folder / ".busy"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock_file(descriptor, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode("utf-8", "replace").strip() or "another process"
            os.close(descriptor)
            raise CacheBusyError(f"{folder}: {holder} is {what} now; wait for it or stop it") from None
        if _is_still_at(path, descriptor):
            break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, holder_name((0, 1)).partition(", part")[0].encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def lock_file(descriptor: int, path: Path, flags: int = fcntl.LOCK_EX) -> None:
    """Take a lock on an open file; closing it, and dying, gives the lock back.

    Raises:
        BlockingIOError: another process has it, and `flags` say not to wait.
        CacheWriteError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, flags)
    except BlockingIOError:
        raise
    except OSError as error:
        raise CacheWriteError(
            f"{path} cannot be locked: {error.strerror}; without locks two builders could mix, so mount this file "
            "system with them (docs/clusters.md), or put the cache elsewhere"
        ) from error


class LocalLocks:
    """The locks of one cache's folder."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder
        self.folder = folder / LOCK_FOLDER

    @contextmanager
    def lock_part(self, part: tuple[int, int]) -> Iterator[None]:
        """Be the only builder of `part` until the block ends.

        Raises:
            CacheBusyError: another live builder has it, or divides the work into another number of parts.
        """
        path = self.folder / f"part-{part[0]}-of-{part[1]}"
        with folder_lock(self.folder):
            for other in sorted(self.folder.glob("part-*")):
                holder, held = _holder_of(other), part_of(other.name)
                if holder is not None and held is not None and parts_clash(held, part):
                    raise CacheBusyError(busy_message(str(self.cache), part, holder))
            descriptor = _hold_file(path, holder_name(part))
        try:
            # Workers of a builder that was killed notice it only seconds later, and until then they write.
            self._wait_for_workers(part)
            yield
        finally:
            with suppress(CacheBusyError):
                self._wait_for_workers(part)
            with folder_lock(self.folder):
                path.unlink(missing_ok=True)
                os.close(descriptor)
                if not any(self.folder.glob("part-*")):
                    (self.folder / EXCLUSIVE).unlink(missing_ok=True)
            with suppress(OSError):  # others are still at work
                self.folder.rmdir()

    @contextmanager
    def join_as_worker(self) -> Iterator[None]:
        """Work for the one builder that holds part 0 of 1; nobody else will hold the cache before the block ends."""
        path = self.folder / f"worker-{uuid.uuid4().hex}"
        with folder_lock(self.folder):
            descriptor = _hold_file(path, f"a worker of {holder_name((0, 1))}")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until nobody else is in such a block; only inside `lock_part`, or `join_as_worker`."""
        path = self.folder / EXCLUSIVE
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        lock_file(descriptor, path)
        try:
            yield
        finally:
            os.close(descriptor)

    def _wait_for_workers(self, part: tuple[int, int]) -> None:
        """Wait until no process works for a builder that has ended, or was killed."""
        until = time.monotonic() + WORKERS_SECONDS
        while True:
            with folder_lock(self.folder):
                holders = [holder for path in self.folder.glob("worker-*") if (holder := _holder_of(path))]
            if not holders:
                return
            if time.monotonic() > until:
                raise CacheBusyError(busy_message(str(self.cache), part, holders[0]))
            time.sleep(0.1)


def _hold_file(path: Path, holder: str) -> int:
    """Make a file, lock it and write who holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    lock_file(descriptor, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Never renamed into place: the lock is on this very file, whose text only explains it.
    os.write(descriptor, holder.encode())
    return descriptor


def _holder_of(path: Path) -> str | None:
    """Say who holds a file; where nobody does, remove it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        lock_file(descriptor, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return path.read_text(encoding="utf-8", errors="replace")
    else:
        path.unlink(missing_ok=True)
        return None
    finally:
        os.close(descriptor)


def _is_still_at(path: Path, descriptor: int) -> bool:
    """Say whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
