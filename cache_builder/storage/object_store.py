"""A cache on an object store, through fsspec: s3://…, gs://…, or any other URL whose package is installed.

    commit(key, data)    one PUT ─ read back: an object appears whole or not at all
    .locks/<name>        a lease: {"holder", "host", "process", "token", "renewed"}, created only where there is none,
                         renewed every minute; after five minutes without it its holder counts as dead

A request that fails for a passing reason is repeated (`retries.py`). An object store has no lock that ends with its
holder, so whoever wants the part of a builder on another machine waits until that renews its lease, which shows that it
lives, or until the lease is over. Two builders that both think they hold a part still write the same bytes, each object
whole.
"""

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import fsspec
from rich.console import Console

from cache_builder.errors import (
    CacheBusyError,
    CacheDamagedError,
    CacheUnreachableError,
    CacheWriteError,
    ConfigError,
)
from cache_builder.storage.locks import LOCK_FOLDER, STAGE, busy_message, holder_name, is_alive, machine, parts_clash
from cache_builder.storage.retries import attempt, without_secrets

RENEW_SECONDS = 60.0
LEASE_SECONDS = 300.0
POLL_SECONDS = 0.5


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
        # Not `isfile`, which takes any failure for "no".
        self.fs.invalidate_cache()
        try:
            info = attempt(lambda: self.fs.info(self.path(key)), f"read {self.where(key)}")
        except FileNotFoundError:
            return False
        return info["type"] == "file"

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
        self._remove(self.path(key))

    def remove_tree(self, prefix: str) -> None:
        keys = self.sizes(prefix)
        if keys:
            paths = [self.path(key) for key in keys]
            with suppress(FileNotFoundError):
                attempt(lambda: self.fs.rm(paths), f"remove {self.where(prefix)}")
            for key in self.sizes(prefix):
                self.remove(key)

    @contextmanager
    def hold(self, part: tuple[int, int]) -> Iterator[None]:
        with self._lease(f"part-{part[0]}-of-{part[1]}.json", part, wait=False):
            for name, lease in self._leases().items():
                if not name.startswith("part-") or is_over(lease):
                    continue
                index, _, parts = name.removeprefix("part-").removesuffix(".json").partition("-of-")
                other = (int(index), int(parts))
                if other != part and parts_clash(other, part):
                    raise CacheBusyError(busy_message(self.where(""), part, lease["holder"]))
            yield

    def hand(self) -> AbstractContextManager[None]:
        """Hold nothing: what still works when its builder has died writes the same bytes, each object whole."""
        return nullcontext()

    @contextmanager
    def stage(self) -> Iterator[None]:
        with self._lease(f"{STAGE}.json", (0, 1), wait=True):
            yield

    @contextmanager
    def _lease(self, name: str, part: tuple[int, int], *, wait: bool) -> Iterator[None]:
        path = self.path(f"{LOCK_FOLDER}/{name}")
        lease = {"holder": holder_name(part), "host": machine(), "process": os.getpid()}
        lease["token"] = uuid.uuid4().hex
        seen: dict[str, Any] | None = None
        while not self._create(path, lease):
            holder = self._leases().get(name)
            if holder is None:
                continue
            if holder.get("token") == lease["token"]:  # an earlier attempt had arrived, only its answer had not
                break
            if is_over(holder):
                self._remove(path)
                continue
            if seen is None and holder["host"] != machine():
                what = f"waiting for {holder['holder']}, or, if it is dead, for the end of its lease"
                Console(stderr=True).print(what, markup=False, highlight=False, soft_wrap=True)
            seen = seen or holder
            lives = holder["host"] == machine() or holder["renewed"] != seen["renewed"]
            if lives and not wait:
                raise CacheBusyError(busy_message(self.where(""), part, holder["holder"]))
            time.sleep(POLL_SECONDS)
        done = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(path, lease, done), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            done.set()
            renewal.join()
            with suppress(CacheUnreachableError):  # then the lease ends with its time
                self._remove(path)

    def _create(self, path: str, lease: dict[str, Any]) -> bool:
        try:
            attempt(lambda: self.fs.pipe_file(path, _stamped(lease), mode="create"), f"write below {self.where('')}")
        except FileExistsError:
            return False
        return True

    def _renew(self, path: str, lease: dict[str, Any], done: threading.Event) -> None:
        while not done.wait(RENEW_SECONDS):
            with suppress(CacheUnreachableError):  # tried again at the next turn, well before the lease is over
                attempt(lambda: self.fs.pipe_file(path, _stamped(lease)), f"write below {self.where('')}", done)

    def _leases(self) -> dict[str, dict[str, Any]]:
        leases: dict[str, dict[str, Any]] = {}
        for path in self._find(LOCK_FOLDER):
            with suppress(FileNotFoundError):
                data = attempt(lambda: self.fs.cat_file(path), f"read below {self.where('')}")  # noqa: B023
                leases[path.rpartition("/")[2]] = json.loads(data)
        return leases

    def _find(self, prefix: str) -> dict[str, Any]:
        self.fs.invalidate_cache()
        try:
            return attempt(lambda: self.fs.find(self.path(prefix), detail=True), f"list {self.where(prefix)}")
        except FileNotFoundError:
            return {}

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            attempt(lambda: self.fs.rm_file(path), f"remove an object below {self.where('')}")

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
            except ValueError as error:
                raise ConfigError(f"cache {self.where('')}: {error}") from error
            self._connection = (os.getpid(), fs, root.rstrip("/"))
        return self._connection[1], self._connection[2]


def is_over(lease: dict[str, Any]) -> bool:
    """Say whether a lease's holder is gone: its time is over, or it ran on this machine and no longer does."""
    if time.time() - lease["renewed"] > LEASE_SECONDS:
        return True
    if lease["host"] != machine():
        return False
    return not is_alive(lease["process"])


def _stamped(lease: dict[str, Any]) -> bytes:
    return json.dumps({**lease, "renewed": time.time()}).encode()
