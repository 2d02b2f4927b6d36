"""Leases between the builders of one cache on an object store, which has no lock that ends with its holder.

    .locks/<name>.json   {"holder", "host", "process", "token", "renewed"}
    taken                by creating the object, which succeeds only where there is none
    kept                 by writing it anew every minute
    over                 after five minutes without that, or at once where its process is of this machine and gone

Whoever wants the part of a builder on another machine waits until that renews its lease, which shows that it lives, or
until the lease is over. Two builders that both think they hold a part still write the same bytes, each object whole: so
a lease saves work, and no cache depends on it.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from cache_builder.errors import CacheBusyError, CacheUnreachableError
from cache_builder.storage.holders import (
    EXCLUSIVE,
    LOCK_FOLDER,
    busy_message,
    holder_name,
    is_alive,
    machine,
    part_of,
    parts_clash,
)

RENEW_SECONDS = 60.0
LEASE_SECONDS = 300.0
POLL_SECONDS = 0.5
_FIELDS: dict[str, Any] = {"holder": str, "host": str, "process": int, "renewed": (int, float)}

Lease = dict[str, Any]


class Objects(Protocol):
    """What leases need of an object store."""

    def where(self, key: str) -> str:
        """Return how a message names the object."""

    def create(self, key: str, data: bytes) -> bool:
        """Put an object there where there is none; say whether it was put."""

    def replace(self, key: str, data: bytes, stop: threading.Event) -> None:
        """Put an object there, over one that is there; `stop` ends repetitions."""

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Return every object below `prefix` by its last name."""

    def remove(self, key: str) -> None:
        """Remove an object; none need be there."""


class Leases:
    """The leases of one cache."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @contextmanager
    def lock_part(self, part: tuple[int, int]) -> Iterator[None]:
        """Be the only builder of `part` until the block ends.

        Raises:
            CacheBusyError: another live builder has it, or divides the work into another number of parts.
        """
        with self._lease(f"part-{part[0]}-of-{part[1]}.json", part, wait=False):
            # After taking one's own: two builders that begin at once see each other's, and at least one gives way.
            for name, lease in self.all().items():
                other = part_of(name.removesuffix(".json"))
                if other is None or is_over(lease):
                    continue
                if other != part and parts_clash(other, part):
                    raise CacheBusyError(busy_message(self.objects.where(""), part, lease["holder"]))
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until nobody else is in such a block."""
        with self._lease(f"{EXCLUSIVE}.json", (0, 1), wait=True):
            yield

    def all(self) -> dict[str, Lease]:
        """Return every lease by its name; what is none counts as one that is over."""
        return {name: _parse(data) for name, data in self.objects.contents(LOCK_FOLDER).items()}

    @contextmanager
    def _lease(self, name: str, part: tuple[int, int], *, wait: bool) -> Iterator[None]:
        key = f"{LOCK_FOLDER}/{name}"
        lease: Lease = {"holder": holder_name(part), "host": machine(), "process": os.getpid()}
        lease["token"] = uuid.uuid4().hex
        self._take(key, name, lease, part, wait)
        done = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(key, lease, done), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            done.set()
            renewal.join()
            with suppress(CacheUnreachableError):  # then the lease ends with its time
                self.objects.remove(key)

    def _take(self, key: str, name: str, lease: Lease, part: tuple[int, int], wait: bool) -> None:
        seen: Lease | None = None
        unchanged_since = time.monotonic()
        while not self.objects.create(key, stamped(lease)):
            holder = self.all().get(name)
            if holder is None:
                continue
            if holder.get("token") == lease["token"]:  # an earlier attempt had arrived, only its answer had not
                return
            # Also by this machine's clock alone, as the holder's may be fast.
            if is_over(holder) or time.monotonic() - unchanged_since > LEASE_SECONDS:
                self.objects.remove(key)
                continue
            is_near = holder["host"] == machine()
            if seen is None and not is_near:
                _say(f"waiting for {holder['holder']}, or, if it is dead, for the end of its lease")
            if seen is None or holder["renewed"] != seen["renewed"]:
                unchanged_since = time.monotonic()
            seen = seen or holder
            lives = is_near or holder["renewed"] != seen["renewed"]
            if lives and not wait:
                raise CacheBusyError(busy_message(self.objects.where(""), part, holder["holder"]))
            time.sleep(POLL_SECONDS)

    def _renew(self, key: str, lease: Lease, done: threading.Event) -> None:
        while not done.wait(RENEW_SECONDS):
            with suppress(CacheUnreachableError):  # tried again at the next turn, well before the lease is over
                self.objects.replace(key, stamped(lease), done)


def is_over(lease: Lease) -> bool:
    """Say whether a lease's holder is gone: its time is over, or it ran on this machine and no longer does."""
    if not lease or time.time() - lease["renewed"] > LEASE_SECONDS:
        return True
    if lease["host"] != machine():
        return False
    return not is_alive(lease["process"])


def stamped(lease: Lease) -> bytes:
    """Return a lease as it is stored, renewed now."""
    return json.dumps({**lease, "renewed": time.time()}).encode()


def _parse(data: bytes) -> Lease:
    """Read a lease; {} where an object that is none has its name."""
    try:
        lease = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    fits = isinstance(lease, dict) and all(isinstance(lease.get(field), kind) for field, kind in _FIELDS.items())
    # A time that is no number is never over and always another one: it would be waited for without end.
    return lease if fits and 0 < lease["process"] < 2**31 and 0 <= lease["renewed"] < 1e12 else {}


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
