"""Who builds which part of a local cache, so that two builders never do the same work.

    <cache>/.locks/part-<i>-of-<n>    held with flock while part i of n is being built; the text names the holder
    <cache>/.locks/stage              held with flock during a stage that one builder does for all

The kernel drops a lock when its holder dies, however it dies. The registry itself is guarded by a lock on the cache's
folder, and removed with the last holder, so a finished cache holds no trace of who built it.
"""

import fcntl
import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from cache_builder.errors import CacheBusyError

LOCK_FOLDER = ".locks"
STAGE = "stage"


def holder_name(part: tuple[int, int]) -> str:
    """Describe this process to whoever is refused because of it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{user}@{socket.gethostname()}, process {os.getpid()}, part {part[0]}/{part[1]}, since {since}"


def parts_clash(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Say whether two parts may hold the same unit of work."""
    return one == other or one[1] != other[1]


def busy_message(where: str, part: tuple[int, int], holder: str) -> str:
    """Say who holds the cache."""
    return (
        f"cache {where}: part {part[0]}/{part[1]} cannot be built now, because another builder is at work: {holder}; "
        "wait for it or stop it (to share the work, give every builder its own --part i/n of the same n)"
    )


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for this folder; makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class LocalLocks:
    """The locks of one cache's folder."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder
        self.folder = folder / LOCK_FOLDER

    @contextmanager
    def hold(self, part: tuple[int, int]) -> Iterator[None]:
        """Be the only builder of `part` until the block ends.

        Raises:
            CacheBusyError: another live builder has it, or divides the work into another number of parts.
        """
        path = self.folder / f"part-{part[0]}-of-{part[1]}"
        with folder_lock(self.cache):
            self.folder.mkdir(exist_ok=True)
            for other in sorted(self.folder.glob("part-*")):
                self._refuse_or_clear(other, part)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, holder_name(part).encode())
        try:
            yield
        finally:
            with folder_lock(self.cache):
                path.unlink(missing_ok=True)
                os.close(descriptor)
                if not any(self.folder.glob("part-*")):
                    (self.folder / STAGE).unlink(missing_ok=True)
                    with suppress(OSError):
                        self.folder.rmdir()

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Wait for the stage's lock and hold it until the block ends; only inside `hold`."""
        descriptor = os.open(self.folder / STAGE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _refuse_or_clear(self, path: Path, part: tuple[int, int]) -> None:
        descriptor = os.open(path, os.O_RDWR)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                i, _, n = path.name.removeprefix("part-").partition("-of-")
                if parts_clash((int(i), int(n)), part):
                    raise CacheBusyError(busy_message(str(self.cache), part, path.read_text())) from None
            else:
                path.unlink()
        finally:
            os.close(descriptor)
