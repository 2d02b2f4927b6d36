"""A cache on an object store, through fsspec: s3://…, gs://…, or any other URL whose package is installed.

    commit(key, data)    one PUT ─ read back: an object appears whole or not at all

A request that fails for a passing reason is repeated (`retries.py`). Builders keep apart by `leases.py`.
"""

import hashlib
import os
import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import fsspec

from cache_builder.errors import CacheDamagedError, CacheUnreachableError, CacheWriteError, ConfigError
from cache_builder.storage.holders import LOCK_FOLDER
from cache_builder.storage.leases import Leases
from cache_builder.storage.retries import attempt, without_secrets


class RemoteStore:
    """A prefix of an object store. The connection is made anew after a fork or a pickle."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._connection: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_connection": None}

    @property
    def fs(self) -> Any:
        return self._connect()[0]

    def path(self, key: str) -> str:
        """Return the object's path as the file system wants it."""
        return f"{self._connect()[1]}/{key}".rstrip("/")

    def where(self, key: str) -> str:
        return without_secrets(f"{self.url}/{key}" if key else self.url)

    def read(self, key: str) -> bytes:
        try:
            return attempt(lambda: self.fs.cat_file(self.path(key)), f"read {self.where(key)}")
        except FileNotFoundError:
            raise CacheDamagedError(f"{self.where(key)} is damaged: the object is missing") from None

    def read_range(self, key: str, start: int, size: int) -> bytes:
        return self._read_part(key, start, start + size, size)

    def read_tail(self, key: str, size: int) -> bytes:
        return self._read_part(key, -size, None, size)

    def sizes(self, prefix: str) -> dict[str, int]:
        root = len(self.path("")) + 1
        found = self._find(prefix)
        sizes = {path[root:]: info["size"] for path, info in found.items() if len(path) > root}
        return {key: size for key, size in sizes.items() if not key.startswith(f"{LOCK_FOLDER}/")}

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        # Not `isfile`, which takes any failure for "no".
        self.fs.invalidate_cache()
        try:
            info = attempt(lambda: self.fs.info(self.path(key)), f"read {self.where(key)}")
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def commit(self, key: str, data: bytes) -> None:
        try:
            attempt(lambda: self.fs.pipe_file(self.path(key), data), f"write {self.where(key)} ({len(data):,} bytes)")
        except CacheUnreachableError as error:
            raise CacheWriteError(
                f"{error}; what is committed is safe: mend that and give the same command again to continue"
            ) from error.__cause__
        if hashlib.sha256(self.read(key)).digest() != hashlib.sha256(data).digest():
            raise CacheWriteError(
                f"{self.where(key)} does not read back as it was written; give the same command again"
            )

    def remove(self, key: str) -> None:
        with suppress(FileNotFoundError):
            attempt(lambda: self.fs.rm_file(self.path(key)), f"remove an object below {self.where('')}")

    def remove_tree(self, prefix: str) -> None:
        keys = self.sizes(prefix)
        if keys and not self.url.startswith("hf://"):  # huggingface_hub's `rm` takes one path, not a list
            paths = [self.path(key) for key in keys]
            with suppress(FileNotFoundError):
                attempt(lambda: self.fs.rm(paths), f"remove {self.where(prefix)}")
            keys = self.sizes(prefix)
        for key in keys:
            self.remove(key)

    def lock_part(self, part: tuple[int, int]) -> AbstractContextManager[None]:
        return Leases(self).lock_part(part)

    def join_as_worker(self) -> AbstractContextManager[None]:
        """Hold nothing: what still works when its builder has died writes the same bytes, each object whole."""
        return nullcontext()

    def exclusive(self) -> AbstractContextManager[None]:
        return Leases(self).exclusive()

    def create(self, key: str, data: bytes) -> bool:
        """Put an object there where there is none; say whether it was put."""
        try:
            attempt(lambda: self.fs.pipe_file(self.path(key), data, mode="create"), f"write below {self.where('')}")
        except FileExistsError:
            return False
        return True

    def replace(self, key: str, data: bytes, stop: threading.Event) -> None:
        """Put a small object there without reading it back; `stop` ends repetitions."""
        attempt(lambda: self.fs.pipe_file(self.path(key), data), f"write below {self.where('')}", stop)

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Return every object below `prefix` by its last name."""
        found: dict[str, bytes] = {}
        for path in self._find(prefix):
            with suppress(FileNotFoundError):
                data = attempt(lambda: self.fs.cat_file(path), f"read below {self.where('')}")  # noqa: B023
                found[path.rpartition("/")[2]] = data
        return found

    def _find(self, prefix: str) -> dict[str, Any]:
        self.fs.invalidate_cache()
        try:
            return attempt(lambda: self.fs.find(self.path(prefix), detail=True), f"list {self.where(prefix)}")
        except FileNotFoundError:
            return {}

    def _read_part(self, key: str, start: int, end: int | None, size: int) -> bytes:
        try:
            data = attempt(lambda: self.fs.cat_file(self.path(key), start=start, end=end), f"read {self.where(key)}")
        except FileNotFoundError:
            raise CacheDamagedError(f"{self.where(key)} is damaged: the object is missing") from None
        if len(data) < size:
            raise CacheDamagedError(f"{self.where(key)} is damaged: {len(data):,} bytes where {size:,} are expected")
        return data

    def _connect(self) -> tuple[Any, str]:
        if self._connection is None or self._connection[0] != os.getpid():
            try:
                fs, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
            except ImportError as error:
                raise ConfigError(
                    f"cache {self.where('')}: {error}; `pip install footsteps[remote]` for s3://"
                ) from error
            except (ValueError, FileNotFoundError) as error:  # the latter of an archive that is to be looked into
                raise ConfigError(f"cache {self.where('')}: {error}") from error
            self._connection = (os.getpid(), fs, root.rstrip("/"))
        return self._connection[1], self._connection[2]
