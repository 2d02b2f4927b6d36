"""Builder processes on separate cores against one: how much of n times its rate do n of them reach?

rate      positions of the cache / seconds from the moment when all builders are loaded to the end of the last one:
          forward passes, targets, encoding, durable commits to one folder, and the locks between them
ratio     rate(n) / (n · rate(1)), each builder pinned to its own cores, with as many threads
whole     the same of the whole of it: starting Python, importing torch and loading the model too, and completing the
          checkpoint, which the last builder does alone

shares    of one builder's time from that moment on, on a CPU: the model's layers, head and extraction in its own
          thread, encoding and commits in the writer's, and how long the former stood still for tokens or commits

One builder and n are measured in turns, `--rounds` times; the figures are medians. Give enough positions that a round
takes a minute: what start-up costs is in `whole` alone, but a short round measures the clock.

    python -m tools.bench_build [--builders 2] [--cores-each 1] [--positions 65536]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "step-1"
SHARDS_PER_BUILDER = 8
VOCABULARY = 8192
PARTS = "layers", "head", "extraction", "encoding", "commits", "waiting"


class Vocabulary:
    """As much of a tokenizer as running a checkpoint needs."""

    pad_token_id = 0

    def __len__(self) -> int:
        return VOCABULARY


def child(folder: Path, part: tuple[int, int], cores: list[int]) -> None:
    """Load, say so, wait for the word, build one part; print how many positions it had and whether all is complete."""
    os.sched_setaffinity(0, cores)
    import torch

    from cache_builder.build.work_units import divide
    from cache_builder.build.worker import Worker
    from cache_builder.cache.reader import open_cache
    from cache_builder.capture.backend import open_engine
    from cache_builder.config import CacheExperiment
    from cache_builder.storage.local import LocalStore

    torch.set_num_threads(len(cores))
    place = str(folder / "teacher")
    teacher = {"model": place, "checkpoints": [place]}
    experiment = CacheExperiment.model_validate({"run": {"output_dir": str(folder)}, "data": {}, "teacher": teacher})
    store, cache = LocalStore(folder / "cache"), open_cache(str(folder / "cache"))
    tokenizer: Any = Vocabulary()
    engine = open_engine(experiment, tokenizer)
    worker = Worker(engine, store, cache.manifest, {NAME: place}, cache.corpus, None)
    with store.lock_part(part):
        worker.load(NAME)
        (work,) = divide(1, worker.writer(NAME).n_shards, part)
        print("loaded", flush=True)
        sys.stdin.readline()
        seconds, began = clocks(), time.perf_counter()
        positions = sum(worker.build(NAME, work))
        whole = time.perf_counter() - began
        seconds["waiting"] = worker.pace.waiting_seconds
        shares = {what: spent / whole for what, spent in seconds.items()}
        print(json.dumps({"positions": positions, "shares": shares}), flush=True)
        worker.finish(NAME)


def clocks() -> dict[str, float]:
    """Put clocks around the parts of a build, and return where they count: seconds by part."""
    from cache_builder.cache import writer
    from cache_builder.capture import capture
    from cache_builder.storage.local import LocalStore

    seconds = dict.fromkeys(PARTS, 0.0)

    def clocked(part: str, function: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                seconds[part] += time.perf_counter() - began

        return run

    places = [(capture, "hidden_states_at", "layers"), (capture, "project", "head"), (capture, "extract", "extraction")]
    places += [(writer, "encode_records", "encoding"), (writer, "encode_shard", "encoding")]
    for module, name, part in [*places, (LocalStore, "commit", "commits")]:
        setattr(module, name, clocked(part, getattr(module, name)))
    return seconds


def run(folder: Path, builders: int, cores_each: int) -> tuple[float, float, int, dict[str, float]]:
    """Build a cache with so many builders; return the rate, the whole's rate, the positions and the first's shares."""
    from cache_builder.cache.reader import open_cache

    cores = sorted(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "tools.bench_build", "--child", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores_each)}
    started = time.perf_counter()
    processes = []
    for index in range(builders):
        own = cores[index * cores_each : (index + 1) * cores_each]
        arguments = [*command, str(index), str(builders), ",".join(map(str, own))]
        processes.append(
            subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    for process in processes:
        _hear(process, "loaded\n")
    go = time.perf_counter()
    for process in processes:
        _tell(process)
    heard = [json.loads(_hear(process)) for process in processes]
    positions = sum(each["positions"] for each in heard)
    seconds = time.perf_counter() - go
    if any([process.wait() for process in processes]):
        raise SystemExit("a builder failed")
    whole_seconds = time.perf_counter() - started
    assert open_cache(str(folder / "cache")).checkpoints == (NAME,)
    return positions / seconds, positions / whole_seconds, positions, heard[0]["shares"]


def prepare(folder: Path, positions: int, shards: int, args: argparse.Namespace) -> None:
    """Write the teacher, once, and a new cache without any targets."""
    import shutil

    import numpy as np
    import torch

    from cache_builder.cache.writer import create_cache, write_order, write_probe
    from cache_builder.format.manifest import CheckpointIdentity
    from cache_builder.storage.local import LocalStore
    from tools.measuring import make_model
    from tools.synthetic_cache import Synthetic, manifest_of

    if not (folder / "teacher").exists():
        model = make_model(VOCABULARY, args.hidden_size, args.layers, torch.float32, torch.device("cpu"))
        model.save_pretrained(folder / "teacher")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    shard = -(-positions // shards)
    made = Synthetic(-(-positions // 40), VOCABULARY, shard_positions=shard, chunk_positions=shard, checkpoints=(NAME,))
    corpus, store = made.corpus(), LocalStore(folder / "cache")
    create_cache(store, manifest_of(made, corpus), corpus)
    write_order(store, [NAME])
    n_probe = int(corpus.position_offsets[made.probe_sequences])
    anchor = CheckpointIdentity(name=NAME, weights_fingerprint="", dtype="float32", attn_implementation="")
    ids = made.targets(0, 0, n_probe).ids.astype(np.uint32)
    write_probe(store, anchor, np.arange(made.probe_sequences), ids)


def main() -> None:
    """Measure each number of builders against one; append rows to results/build.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builders", type=int, nargs="+", default=[2])
    parser.add_argument("--cores-each", type=int, default=1)
    parser.add_argument("--positions", type=int, default=65_536)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to build; the system's temporary folder unless given")
    args = parser.parse_args()
    if max(args.builders) * args.cores_each > len(os.sched_getaffinity(0)):
        parser.error(f"{max(args.builders)} builders of {args.cores_each} cores: more than this machine lets us use")
    from rich.console import Console
    from rich.table import Table

    from tools.measuring import append_rows

    table = Table(
        "builders", "positions/s", "ratio", "whole, positions/s", "ratio", *PARTS, title=f"{args.cores_each} cores each"
    )
    rows: list[dict[str, object]] = []
    parts: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        for builders in args.builders:
            rounds = []
            for _ in range(args.rounds):
                measured = []
                for count in (1, builders):
                    prepare(folder, args.positions, SHARDS_PER_BUILDER * builders, args)
                    measured.append(run(folder, count, args.cores_each))
                rounds.append(measured)
            for place, count in enumerate((1, builders)):
                rate, whole = (statistics.median(measured[place][what] for measured in rounds) for what in (0, 1))
                ratio, whole_ratio = (
                    statistics.median(measured[place][what] / measured[0][what] / count for measured in rounds)
                    for what in (0, 1)
                )
                shares = {part: statistics.median(measured[place][3][part] for measured in rounds) for part in PARTS}
                spent = [f"{share:.3f}" for share in shares.values()]
                table.add_row(str(count), f"{rate:,.0f}", f"{ratio:.3f}", f"{whole:,.0f}", f"{whole_ratio:.3f}", *spent)
                sizes = {"hidden": args.hidden_size, "layers": args.layers, "positions": rounds[0][place][2]}
                figures = {"positions_per_second": f"{rate:.1f}", "ratio": f"{ratio:.3f}"}
                figures |= {"whole_positions_per_second": f"{whole:.1f}", "whole_ratio": f"{whole_ratio:.3f}"}
                setting: dict[str, object] = {"cores_each": args.cores_each} | sizes | {"builders": count}
                rows.append(setting | figures)
                parts += [setting | {"part": part, "share": f"{share:.4f}"} for part, share in shares.items()]
    append_rows("build.csv", rows)
    append_rows("build_parts.csv", parts)
    Console(width=110).print(table)


def _hear(process: "subprocess.Popen[str]", expected: str | None = None) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line or (expected is not None and line != expected):
        raise SystemExit(f"a builder said {line!r}")
    return line


def _tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        place, index, parts, own_cores = sys.argv[2:]
        child(Path(place), (int(index), int(parts)), [int(core) for core in own_cores.split(",")])
    else:
        main()
