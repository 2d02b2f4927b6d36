"""Builders that run at the same time, or are killed until one of them finishes; forked, so that torch is imported once.

    python -m tests.support.builders TEACHING CACHE parts:3      three parts at the same time
    python -m tests.support.builders TEACHING CACHE instant:7    SIGKILL after random times from seed 7
    python -m tests.support.builders TEACHING CACHE event:7      SIGKILL at the 7th fsync, then at later and later ones

Each scenario builds CACHE/<scenario>. A write that is killed leaves half a file, as a crash of the machine would.
Prints how many builders were killed in each.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from tests.support.caches import Teaching


def main() -> None:
    torch.set_num_threads(1)
    teaching, folder = Teaching(Path(sys.argv[1])), Path(sys.argv[2])
    for scenario in sys.argv[3:]:
        kind, _, number = scenario.partition(":")
        cache = folder / scenario
        print(
            build_parts(teaching, cache, int(number)) if kind == "parts" else kill(teaching, cache, kind, int(number))
        )


def build_parts(teaching: Teaching, cache: Path, parts: int) -> int:
    """Build every part in its own process, all at once."""
    children = [start(teaching, cache, (part, parts), None) for part in range(parts)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * parts
    return 0


def kill(teaching: Teaching, cache: Path, kind: str, number: int) -> int:
    """Build until a process is not killed before it has finished; return how many were."""
    rng = random.Random(number)
    killed = 0
    while True:
        child = start(teaching, cache, (0, 1), number + 7 * killed if kind == "event" else None)
        if kind == "instant":
            time.sleep(rng.uniform(0.0, 0.3 + 0.1 * killed))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return killed
        assert os.WIFSIGNALED(status), f"the builder failed by itself: {status}"
        killed += 1


def start(teaching: Teaching, cache: Path, part: tuple[int, int], die_at: int | None) -> int:
    """Fork a builder and return its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if die_at is not None:
            die_at_fsync(die_at)
        teaching.build(cache, part=part)
        status = 0
    finally:
        os._exit(status)


def die_at_fsync(number: int) -> None:
    """Make this process die at its `number`-th fsync, when only the first half of a file is on disk."""
    calls = 0
    fsync = os.fsync

    def counting_fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            if os.path.isfile(f"/proc/self/fd/{descriptor}"):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = counting_fsync


if __name__ == "__main__":
    main()
