"""Training's reads of a cache at a URL: how many a bounded copy answers, and what waiting for a distant store costs.

    python -m tools.bench_stream [--sequences 10000] [--latency 0.02]

requests   chunks asked of the store in the second to fourth epoch, as a share of those needed, by how much of them the
           copy may hold; beside it what plain LRU over single chunks would ask for (the same requests, counted)
batches    seconds per batch from a store that takes `--latency` to answer: chunks one by one, at once, through an empty
           copy, through a full one; and from a folder

The cache is made up, in fsspec's memory; rows come in the trainer's own order. Counts do not depend on the machine.
"""

import argparse
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cache_builder.cache.disk_cache import OWN_BYTES, cost
from cache_builder.cache.reader import Cache, open_cache
from cache_builder.format.manifest import LedgerEntry
from cache_builder.storage.local import LocalStore
from cache_builder.storage.object_store import RemoteStore
from tools.measuring import append_rows, measure, report
from tools.synthetic_cache import Synthetic, write_synthetic_cache
from trainer.loop.order import RowStream

URL = "memory://bench-stream/cache"
CHECKPOINT, BATCH, WINDOW_CHUNKS, EPOCHS = "step-1", 8, 16, 4


class Distant(RemoteStore):
    """A store that takes a while to answer, and keeps a list of what it was asked for."""

    latency = 0.0
    asked: list[tuple[str, int]] = []  # noqa: RUF012

    def read_range(self, key: str, start: int, size: int) -> bytes:
        self.asked.append((key, start))
        time.sleep(self.latency)
        return super().read_range(key, start, size)


def main() -> None:
    """Measure both, print tables, and append them to results/stream.csv and results/stream_seconds.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    made = Synthetic(arguments.sequences, shard_positions=8_192, chunk_positions=512)
    write_synthetic_cache(RemoteStore(URL), made)
    with tempfile.TemporaryDirectory() as folder:
        _requests(arguments.sequences, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_cache(LocalStore(Path(folder) / "here"), made)
        _seconds(arguments, Path(folder))


def _requests(sequences: int, folder: Path) -> None:
    needed = _asked(None)
    chunks, later = len(set(needed[0])), sum(map(len, needed[1:]))
    size = cost(max(entry.bytes // len(entry.chunk_crc32c or [0]) for entry in _shards()))
    table = Table("copy holds", "asked of the store", "plain LRU would ask", title="chunks of targets, from epoch 2 on")
    rows: list[dict[str, object]] = []
    for share in (0.25, 0.5, 0.75, 1.0):
        held = round(share * chunks)
        place = folder / str(share)
        _read_corpus(_open((place, 1 << 40)))
        limit = OWN_BYTES + int((place / "lock").read_text()) + len(_shards()) * cost(1) + held * size
        ours = sum(map(len, _asked((place, limit))[1:])) / later
        lru = lru_misses(needed, held) / later
        table.add_row(f"{share:.0%}", f"{ours:.1%}", f"{lru:.1%}")
        rows.append({"sequences": sequences, "share": share, "asked": f"{ours:.4f}", "lru": f"{lru:.4f}"})
    Console().print(table)
    append_rows("stream.csv", rows)


def _asked(local_copy: tuple[Path, int] | None) -> list[list[tuple[str, int]]]:
    """Read in the trainer's order, with a window in memory; return the chunks of targets asked for in each epoch."""
    cache = _open(local_copy)
    epochs = []
    for epoch in range(EPOCHS):
        Distant.asked.clear()
        for rows in _batches(cache, epoch):
            _read(cache, rows)
        epochs.append([request for request in Distant.asked if "/records/" in request[0]])
    return epochs


def lru_misses(epochs: list[list[tuple[str, int]]], blocks: int) -> int:
    """Return how many of the requests from the second epoch on a plain LRU of so many blocks would not answer."""
    held: OrderedDict[tuple[str, int], None] = OrderedDict()
    misses = 0
    for epoch, request in ((epoch, request) for epoch, requests in enumerate(epochs) for request in requests):
        if request in held:
            held.move_to_end(request)
            continue
        misses += epoch > 0
        held[request] = None
        if len(held) > blocks:
            held.popitem(last=False)
    return misses


def _seconds(arguments: argparse.Namespace, folder: Path) -> None:
    full = (folder / "full", 1 << 40)
    Distant.latency = arguments.latency
    empties = (folder / f"empty-{number}" for number in range(1_000))

    def variant(open_it: Callable[[], Cache], *, at_once: bool) -> Callable[[], None]:
        def run() -> None:
            cache = open_it()
            for rows in islice(_batches(cache, 0), arguments.batches):
                _read(cache, rows, at_once=at_once)

        return run

    variant(lambda: _open(full), at_once=True)()
    variants = {
        "one by one": variant(lambda: _open(None), at_once=False),
        "a batch's chunks at once": variant(lambda: _open(None), at_once=True),
        "at once, empty copy": variant(lambda: _open((next(empties), 1 << 40)), at_once=True),
        "at once, full copy": variant(lambda: _open(full), at_once=True),
        "a folder": variant(lambda: open_cache(str(folder / "here")), at_once=True),
    }
    measured = measure(variants, arguments.rounds, torch.device("cpu"))
    settings = {"sequences": arguments.sequences, "latency": arguments.latency, "batches": arguments.batches}
    title = f"{arguments.batches} batches of {BATCH} sequences"
    report(measured, "stream_seconds.csv", settings, title)


def _open(local_copy: tuple[Path, int] | None) -> Cache:
    window_bytes = 2 * WINDOW_CHUNKS * 512 * 256
    return Cache(Distant(URL), window_bytes, local_copy)


def _read_corpus(cache: Cache) -> None:
    for row in range(len(cache.corpus)):
        cache.corpus.sequence(row)


def _shards() -> list[LedgerEntry]:
    files = open_cache(URL).checkpoint(CHECKPOINT).files
    return [entry for name, entry in files.items() if name.startswith("records/c/")]


def _batches(cache: Cache, epoch: int) -> Iterator[list[int]]:
    n, chunk = len(cache.corpus), cache.manifest.layout.chunk_positions
    stream = RowStream(cache.corpus.position_offsets, chunk, WINDOW_CHUNKS, 0).rows(epoch * n, (epoch + 1) * n)
    while batch := list(islice(stream, BATCH)):
        yield batch


def _read(cache: Cache, rows: list[int], *, at_once: bool = True) -> None:
    if at_once:
        cache.prefetch(CHECKPOINT, rows)
    cache.corpus.sequences(rows)
    targets = cache.read(CHECKPOINT, rows)
    assert np.isfinite(targets.logp[:, 0]).all()


if __name__ == "__main__":
    main()
