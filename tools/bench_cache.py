"""How fast targets are written and read, and the memory that it takes. What they cost and keep: tools/cache_curve.

    python -m tools.bench_cache rates                  positions per second and core, written and read
    python -m tools.bench_cache memory                 peak memory, writing and reading 10⁴ … 10⁶ sequences

rates   One thread, from a warm page cache; the limit is a numpy memmap of the same records. "shuffled" is the order
        in which training reads: chunks shuffled, then sequences within a window of chunks. "chunks alone" is what every
        data-parallel process does for all positions, "complete" what one process does for a whole checkpoint at its
        end. Appended to results/rates.csv.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


def rates(arguments: argparse.Namespace) -> None:
    """Print write and read rates on one core."""
    from cache_builder.cache.reader import open_cache
    from cache_builder.cache.writer import CheckpointWriter
    from cache_builder.format.records import RecordLayout, decode_records, encode_records, records_spec
    from cache_builder.format.zarr_shards import encode_shard
    from cache_builder.storage.local import LocalStore
    from tools.measuring import append_rows
    from tools.synthetic_cache import Synthetic, write_synthetic_cache
    from trainer.loop.order import epoch_order

    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        synthetic = Synthetic(arguments.sequences)
        write_synthetic_cache(LocalStore(folder / "cache"), synthetic)
        cache = open_cache(str(folder / "cache"))
        spec, layout = records_spec(cache.manifest), RecordLayout.of(cache.manifest.targets)
        positions, offsets = cache.corpus.n_positions, cache.corpus.position_offsets
        shard = synthetic.targets(0, 0, min(positions, spec.shard))
        store = LocalStore(folder / "written")
        seconds = _seconds(
            lambda: [store.commit(str(n), encode_shard(spec, encode_records(layout, shard)).data) for n in range(4)]
        )
        table = Table(title=f"{positions:,} positions, {len(cache.corpus):,} sequences; best of three, one thread")
        for header in ("what", "positions/s", "of the memmap"):
            table.add_column(header, justify="left" if header == "what" else "right")
        raw = np.memmap(folder / "raw", np.uint8, "w+", shape=(positions, layout.n_planes))
        for start in range(0, positions, spec.shard):
            raw[start : start + spec.shard] = encode_records(
                layout, synthetic.targets(0, start, min(positions, start + spec.shard))
            ).T
        names = cache.checkpoints[0]
        order = epoch_order(offsets, spec.chunk, arguments.window, 0, 0)
        batches = [order[at : at + 8] for at in range(0, len(order) - 8, 8)]
        vocabulary = cache.manifest.tokenizer.size

        def from_memmap(rows: np.ndarray) -> None:
            planes = np.concatenate([raw[offsets[row] : offsets[row + 1]] for row in rows]).T
            decode_records(layout, planes, vocabulary)

        def batch_of_everything(rows: np.ndarray) -> None:
            cache.read(names, rows)
            cache.corpus.sequences(rows)

        whole = open_cache(str(folder / "cache"))
        records = whole._arrays[names]["records"]
        finished = dict(
            enumerate(entry for file, entry in whole.checkpoint(names).files.items() if "records/c" in file)
        )
        writer = CheckpointWriter(LocalStore(folder / "cache"), cache.manifest, names)
        read = {
            "memmap, sequential, decoded": lambda: [
                decode_records(layout, np.ascontiguousarray(raw[at : at + spec.chunk].T), vocabulary)
                for at in range(0, positions, spec.chunk)
            ],
            "cache, sequential, decoded": lambda: list(whole.shard_targets(names)),
            "memmap, shuffled, batches of 8, decoded": lambda: [from_memmap(rows) for rows in batches],
            "cache, shuffled, batches of 8, decoded": lambda: [cache.read(names, rows) for rows in batches],
            "… with their tokens and masks": lambda: [batch_of_everything(rows) for rows in batches],
            "cache, sequential, chunks alone": lambda: list(records.chunks()),
            "complete: sum the losses of a checkpoint": lambda: writer._losses(finished, offsets),
        }
        found = {"write: encode, compress, commit": 4 * len(shard) / seconds}
        table.add_row(*found, f"{4 * len(shard) / seconds:,.0f}", "")
        limit = 1.0
        for label, action in read.items():
            rate = positions / _seconds(action)
            if label.startswith("memmap"):
                limit = rate
            found[label] = rate
            table.add_row(label, f"{rate:,.0f}", f"{rate / limit:.2f}")
        Console(width=120).print(table)
        total = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
        print(f"all files of the cache: {total / positions:.1f} bytes/position (made-up ids, which hardly compress)")
        rows = [{"positions": positions, "what": what, "positions_per_second": f"{r:.0f}"} for what, r in found.items()]
        append_rows("rates.csv", rows)


def memory(arguments: argparse.Namespace) -> None:
    """Print the peak memory of fresh processes that write, and that read, caches of growing size."""
    table = Table(title="peak resident memory, MiB")
    for header in ("sequences", "write", "read an epoch, memory_bytes = 64 MiB"):
        table.add_column(header, justify="right")
    for sequences in (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            peaks = [_child(action, folder, sequences) for action in ("write", "read")]
        table.add_row(f"{sequences:,}", *(f"{peak:,.0f}" for peak in peaks))
    Console(width=120).print(table)


def _child(action: str, folder: str, sequences: int) -> float:
    command = [sys.executable, "-m", "tools.bench_cache", "memory-child", action, folder, str(sequences)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_child(arguments: argparse.Namespace) -> None:
    """Write or read one cache and print this process's peak memory in MiB."""
    from cache_builder.cache.reader import open_cache
    from cache_builder.storage.local import LocalStore
    from tools.synthetic_cache import Synthetic, write_synthetic_cache
    from trainer.loop.order import epoch_order

    if arguments.action == "write":
        write_synthetic_cache(LocalStore(arguments.folder), Synthetic(arguments.sequences, mean_positions=8))
    else:
        cache = open_cache(str(arguments.folder), memory_bytes=64 << 20)
        order = epoch_order(cache.corpus.position_offsets, cache.manifest.layout.chunk_positions, 64, 0, 0)
        for start in range(0, len(order), 8):
            cache.read("step-1", order[start : start + 8])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _seconds(action: Any) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("rates", rates), ("memory", memory), ("memory-child", memory_child)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        if name == "rates":
            command.add_argument("--sequences", type=int, default=25_000)
            command.add_argument("--window", type=int, default=256, help="chunks of a shuffle window")
            command.add_argument(
                "--folder", type=Path, help="where to write; the system's temporary folder unless given"
            )
        elif name == "memory":
            command.add_argument("--folder", type=Path)
        else:
            command.add_argument("action", choices=["write", "read"])
            command.add_argument("folder", type=Path)
            command.add_argument("sequences", type=int)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
