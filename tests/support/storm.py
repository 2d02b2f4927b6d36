"""A storm: builders, their driver and the store's connection die at random times, until a build has got through.

    python -m tests.support.storm parts TEACHING CACHE SEED …     a driver and two builders, one part each
    python -m tests.support.storm ray TEACHING CACHE SEED …       a driver and two actors on a Ray instance

    round     start ─▶ a random time ─▶ one builder, the driver or the wire to the object store dies ─▶ the rest ends
    after it  every file that a ledger names is still named, with the digest that it had, and has that digest

Each seed builds CACHE-<seed>. Times are real; the seed only chooses them and what dies. Prints what died.
"""

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil
import torch

from cache_builder.errors import CacheUnreachableError, CacheWriteError
from cache_builder.format.manifest import sha256
from cache_builder.storage import retries
from cache_builder.storage.base import Store
from cache_builder.storage.open import open_store
from tests.support.caches import Teaching
from tests.support.object_store import BreakingProxy, s3_environment

DIE_WITH_PARENT = 1
GAVE_UP = 3
"""Exit status of a builder that could not reach the store, and said so in a message for the user."""
drivers: list[subprocess.Popen[bytes]] = []
LIFE_SECONDS = {"parts": (0.3, 0.1), "ray": (40.0, 10.0)}
"""How long a driver lives at most before something dies, and how much longer after each death."""


class Wire(BreakingProxy):
    """A connection to the object store that can be cut, also in the middle of an answer."""

    def __init__(self, endpoint: str) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(endpoint)

    def _serve(self, client: socket.socket) -> None:
        self.open.add(client)
        with suppress(OSError):
            super()._serve(client)
        self.open.discard(client)

    @contextmanager
    def cut(self) -> Iterator[None]:
        self.broken = 10**9
        for client in list(self.open):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        yield
        self.broken = 0


def committed(store: Store) -> dict[str, str]:
    """Return the digest of every file that a checkpoint's ledger names, checked against the file."""
    digests: dict[str, str] = {}
    for key in store.sizes("checkpoints"):
        folder, _, name = key.rpartition("/")
        group = folder.removesuffix("/ledger")
        if folder != group and name.removesuffix(".json").isdigit():
            shard = f"{group}/records/c/0/{name.removesuffix('.json')}"
            digests[shard] = json.loads(store.read(key))["attributes"]["footsteps"]["sha256"]
        elif name == "extras.json" or (name == "zarr.json" and group.count("/") == 1):
            files = json.loads(store.read(key))["attributes"]["footsteps"]["files"]
            digests |= {f"{group}/{file}": entry["sha256"] for file, entry in files.items()}
    for key, digest in digests.items():
        assert sha256(store.read(key)) == digest, f"{key} is not what was committed"
    return digests


def build_parts(teaching: Teaching, cache: str) -> int:
    """Fork a driver that forks a builder for each half, and return its process id."""
    driver = os.fork()
    if driver:
        return driver
    status = 1
    try:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        builders = [_build_part(teaching, cache, (part, 2)) for part in range(2)]
        ended = {os.waitstatus_to_exitcode(os.waitpid(builder, 0)[1]) for builder in builders}
        status = 0 if ended == {0} else GAVE_UP if ended <= {0, GAVE_UP, -signal.SIGKILL} else 1
    finally:
        os._exit(status)


def _build_part(teaching: Teaching, cache: str, part: tuple[int, int]) -> int:
    builder = os.fork()
    if builder:
        return builder
    status = 1
    try:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        teaching.build(cache, part=part)
        status = 0
    except (CacheUnreachableError, CacheWriteError) as error:
        print(error, file=sys.stderr)
        status = GAVE_UP
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def build_on_ray(teaching: Teaching, cache: str) -> int:
    """Start a driver with two actors, and return its process id."""
    from tests.cache_builder.build.test_ray_scheduler import DRIVER

    drivers.append(subprocess.Popen([sys.executable, "-c", DRIVER, "2", teaching.folder, cache]))
    return drivers[-1].pid


def storm(engine: str, teaching: Teaching, cache: str, seed: int, wire: Wire | None) -> Counter[str]:
    """Build a cache through a storm; return what died."""
    rng, died, store = random.Random(seed), Counter[str](), open_store(cache)
    start = build_parts if engine == "parts" else build_on_ray
    shortest, longer = LIFE_SECONDS[engine]
    known: dict[str, str] = {}
    status = GAVE_UP
    while status != 0:
        driver, children = psutil.Process(start(teaching, cache)), set[psutil.Process]()
        while True:
            time.sleep(rng.uniform(0.0, shortest + longer * died.total()))
            children |= set(driver.children(recursive=True))
            ended, code = os.waitpid(driver.pid, os.WNOHANG)
            if ended:
                break
            builders = [child for child in children if engine == "parts" or child.name().startswith("ray::Actor")]
            victim = rng.choice(["driver", *["builder"] * bool(builders), *["wire"] * bool(wire)])
            died[victim] += 1
            with suppress(psutil.NoSuchProcess), wire.cut() if wire and victim == "wire" else nullcontext():
                if victim == "wire":
                    time.sleep(rng.uniform(0.0, 1.5))
                else:
                    (driver if victim == "driver" else rng.choice(builders)).kill()
        status = os.waitstatus_to_exitcode(code)
        assert status in (0, GAVE_UP, -signal.SIGKILL), f"the build failed by itself: {status}"
        wait_for_the_end_of(children)
        now = committed(store)
        lost = {key for key, digest in known.items() if now.get(key) != digest}
        assert not lost, f"committed and lost: {lost}"
        known = now
    return died


def wait_for_the_end_of(processes: set[psutil.Process]) -> None:
    """Wait until the last of a killed driver's processes has died as well."""
    until = time.monotonic() + 120
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < until, processes
        time.sleep(0.01)


def main() -> None:
    torch.set_num_threads(1)
    retries.RETRY_SECONDS = (0.1, 0.2, 0.4)
    os.environ["AWS_MAX_ATTEMPTS"] = "1"
    engine, folder, cache, *seeds = sys.argv[1:]
    endpoint = os.environ.get("AWS_ENDPOINT_URL") if "://" in cache else None
    with (
        Wire(endpoint) if endpoint else nullcontext() as wire,
        s3_environment(wire.endpoint) if wire else nullcontext(),
    ):
        for seed in seeds:
            died = storm(engine, Teaching(Path(folder)), f"{cache}-{seed}", int(seed), wire)
            print(json.dumps(died), flush=True)


if __name__ == "__main__":
    main()
