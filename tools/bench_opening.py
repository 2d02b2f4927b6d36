"""Time and memory of opening a cache, and of finding what is built, by how many shards, chunks and sequences it has.

open       open_cache: list every file, read every ledger, compare the two; all a reader does before its first target
continue   CheckpointWriter.shards_done: what a builder that continues, or completes, reads of one checkpoint

    python -m tools.bench_opening [--shards 1000 10000] [--chunks 16] [--sequences 1000]

Every combination is a made-up cache (tools/synthetic_cache.py) of one checkpoint, its chunks as small as they may be,
because opening reads none of them; its files are not flushed to disk one by one. Times are best of three in one fresh
process, from a warm page cache; memory is what that process has needed at most above what it had before.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CSV_NAME = "opening.csv"
FIGURES = (
    "shards",
    "files",
    "ledger_bytes",
    "open_seconds",
    "open_mib",
    "continue_seconds",
    "order_seconds",
    "order_mib",
)


def main() -> None:
    """Measure each combination in a process of its own, print the table and append it to results/opening.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--chunks", type=int, nargs="+", default=[16], help="chunks of a shard")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1_000])
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder unless given")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = product(arguments.shards, arguments.chunks, arguments.sequences)
    if arguments.child:
        print(json.dumps(measure(arguments.folder, *next(sizes))))
        return
    rows = []
    for shards, chunks, sequences in sizes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            write(Path(folder), shards, chunks, sequences)
            command = [sys.executable, "-m", "tools.bench_opening", "--child", "--folder", folder]
            for name, value in (("--shards", shards), ("--chunks", chunks), ("--sequences", sequences)):
                command += [name, str(value)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"chunks_per_shard": chunks, "sequences": sequences, **json.loads(done.stdout)})
    _report(rows)


def write(folder: Path, shards: int, chunks_per_shard: int, sequences: int) -> None:
    """Write a cache of so many shards, each of so many chunks of as few positions as its sequences need."""
    from cache_builder.storage.local import LocalStore
    from tools.synthetic_cache import Synthetic, write_synthetic_cache

    class Unflushed(LocalStore):
        def commit(self, key: str, data: bytes) -> None:
            path = self.folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    mean_positions = max(1, shards * chunks_per_shard // sequences)
    positions = int(Synthetic(sequences, mean_positions=mean_positions).position_offsets()[-1])
    chunk = max(1, round(positions / (shards * chunks_per_shard)))
    synthetic = Synthetic(
        sequences,
        top_k=1,
        tail_samples=0,
        mean_positions=mean_positions,
        shard_positions=chunk * chunks_per_shard,
        chunk_positions=chunk,
        probe_sequences=1,
    )
    write_synthetic_cache(Unflushed(folder), synthetic)


def measure(folder: Path, *_: int) -> dict[str, Any]:
    """Return the figures of the cache in `folder`; this process must be a fresh one."""
    from cache_builder.cache.reader import open_cache
    from cache_builder.cache.writer import CheckpointWriter
    from cache_builder.memory import peak_memory_mib, reset_peak_memory
    from trainer.loop.order import epoch_order

    ledger = folder / "checkpoints" / "step-1" / "zarr.json"
    reset_peak_memory()
    before = peak_memory_mib()
    cache = open_cache(str(folder))
    figures: dict[str, Any] = {"open_mib": round(peak_memory_mib() - before, 1), "ledger_bytes": ledger.stat().st_size}
    figures["files"] = sum(1 for path in folder.rglob("*") if path.is_file())
    figures["open_seconds"] = round(_best(lambda: open_cache(str(folder))), 4)
    offsets = cache.corpus.position_offsets
    reset_peak_memory()
    before = peak_memory_mib()
    epoch_order(offsets, cache.manifest.layout.chunk_positions, 256, 0, 0)
    figures["order_mib"] = round(peak_memory_mib() - before, 1)
    figures["order_seconds"] = round(
        _best(lambda: epoch_order(offsets, cache.manifest.layout.chunk_positions, 256, 0, 0)), 4
    )
    writer = CheckpointWriter(cache._store, cache.manifest, "step-1")
    writer.reopen({"checkpoints/step-1/loss/c/0"})
    figures["shards"] = writer.n_shards
    figures["continue_seconds"] = round(_best(lambda: writer.shards_done()), 4)
    return {name: figures[name] for name in FIGURES}


def _best(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _report(rows: list[dict[str, Any]]) -> None:
    from tools.measuring import append_rows

    table = Table(*rows[0], title="opening a cache")
    for row in rows:
        table.add_row(*(f"{value:,}" for value in row.values()))
    append_rows(CSV_NAME, rows)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
