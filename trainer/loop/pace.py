"""What the log says of speed: tokens per second, and the share of the time in which training waited for its data.

step: ── next batch ──▶ forward, backward, step ──▶ … ──▶ log entry
      └── waiting ──┘                                     held-out losses, probes and saving are not counted

Host clocks only. A log entry reads the loss from the device anyway, so by then the steps before it are done.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

B_ = TypeVar("B_")


class Pace:
    """The time since the last log entry."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin with the next entry."""
        self._began, self._elsewhere, self.waiting_seconds = time.perf_counter(), 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Time spent training since the last entry."""
        return time.perf_counter() - self._began - self._elsewhere

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Leave out the time of a block, which trains nothing."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._elsewhere += time.perf_counter() - began

    def awaited(self, batches: Iterator[B_]) -> Iterator[B_]:
        """Yield the batches, and count how long each was waited for."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waiting_seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch
