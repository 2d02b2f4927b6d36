"""The batches of the next step, made in a thread while a step computes.

    thread   read, decode, pad, send   batches of step 2      batches of step 3     …
    trainer                            step 1                 step 2                …

A thread and not a process: decoding is NumPy and decompression, which let go of the interpreter's lock, and the chunks
read last are kept once. `dataloader_num_workers` gives processes to whom one thread is not enough.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

B_ = TypeVar("B_")


def read_ahead(batches: Iterator[B_], count: int, begin: Callable[[], None]) -> Iterator[B_]:
    """Yield the same batches in the same order, the next `count` of them being made meanwhile in one thread.

    What making a batch raises is raised in its place. Closing this waits for the batch that is being made, and ends the
    thread; until then nobody else may use what the batches are read from.

    Args:
        begin: called first of all in the thread.
    """
    ended = object()
    maker = ThreadPoolExecutor(1, "batches-ahead")
    try:
        maker.submit(begin).result()
        waiting = deque(maker.submit(next, batches, ended) for _ in range(count))
        while (batch := waiting.popleft().result()) is not ended:
            waiting.append(maker.submit(next, batches, ended))
            yield batch  # type: ignore[misc]
    finally:
        maker.shutdown(cancel_futures=True)
