"""Make trainer/planning/measured.toml, the figures that plans are made from, out of tools/results/*.csv.

    python -m tools.measured_table [--results tools/results]

Of several fitting rows the last one with the largest vocabulary counts. Head factors are what a benchmark's ratio says
of the head, given that the body costs what its formula says:

    factor = (ratio × operations of the yardstick − operations of the body) / operations of the head at positions
"""

import argparse
import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from tools.measuring import RESULTS
from trainer.planning.measured import FILE

LAYERS, SEQUENCE_TOKENS = 8, 512
"""Of the benchmarks' models and texts, where they are at their defaults."""

Row = dict[str, str]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    FILE.write_text(measured_toml(arguments.results), encoding="utf-8")


def measured_toml(results: Path) -> str:
    """Return the table as TOML."""
    constants = [*head_factors(results), *ratios(results), *rates(results), *opening(results)]
    head = "# Made by `python -m tools.measured_table` from tools/results/*.csv; do not edit by hand.\n\n"
    return head + tomli_w.dumps({"constant": constants, "target": targets(results)})


def head_factors(results: Path) -> list[dict[str, Any]]:
    """What the head costs by our ways, as a multiple of its operations at positions."""
    made = []
    for name, csv_name, variant, command, meaning in (
        ("capture_head_factor", "capture.csv", "capture", "python -m tools.bench_capture", "capturing targets"),
        ("distil_head_factor", "loss.csv", "distil", "python -m tools.bench_loss", "the fused loss in a training step"),
    ):
        row = _last(results / csv_name, variant=variant)
        vocabulary, hidden = int(row["vocabulary"]), int(row["hidden"])
        tokens, positions = int(row["tokens"]), int(row["positions"])
        total = int(row.get("student_parameters") or row["parameters"])
        head = 2 * vocabulary * hidden
        body = 2 * (total - vocabulary * hidden) + 4 * LAYERS * hidden * SEQUENCE_TOKENS
        factor = (float(row["ratio"]) * (body + head) - body) * tokens / (head * positions)
        made.append(
            _constant(
                name,
                round(factor, 3),
                "× the operations of the head at positions",
                f"time of the head in {meaning}, where a stock pass takes 1 per token (vocabulary {vocabulary:,}, "
                f"{total / 1e6:.0f} M parameters, {positions / tokens:.0%} of the tokens positions)",
                command,
                csv_name,
                row,
            )
        )
    return made


def ratios(results: Path) -> list[dict[str, Any]]:
    """Ratios to compare with; no plan uses them."""
    made = []
    for name, csv_name, variant, command, meaning in (
        ("capture_ratio", "capture.csv", "capture", "python -m tools.bench_capture", "capturing / a bare forward pass"),
        ("distil_ratio", "loss.csv", "distil", "python -m tools.bench_loss", "a distillation step / a stock SFT step"),
        ("online_ratio", "loss.csv", "online", "python -m tools.bench_loss", "live teacher, dense KL / stock SFT step"),
    ):
        row = _last(results / csv_name, variant=variant)
        made.append(_constant(name, float(row["ratio"]), "×", meaning, command, csv_name, row))
    return made


def rates(results: Path) -> list[dict[str, Any]]:
    """Positions per second of one core."""
    command = "python -m tools.bench_cache rates"
    made = []
    for name, what, meaning in (
        ("write_rate", "write: encode, compress, commit", "a builder's writer: encode, compress, commit"),
        ("complete_rate", "complete: sum the losses of a checkpoint", "completing a checkpoint"),
        ("read_rate", "… with their tokens and masks", "a training process reading batches of 8 in its order"),
        ("chunk_rate", "cache, sequential, chunks alone", "decompressing and checking chunks"),
    ):
        row = _last(results / "rates.csv", what=what)
        rate = float(row["positions_per_second"])
        made.append(_constant(name, rate, "positions/s and core", meaning, command, "rates.csv", row))
    return made


def opening(results: Path) -> list[dict[str, Any]]:
    """What opening costs per shard, chunk and sequence: the least squares of relative errors over all rows."""
    command = "python -m tools.bench_opening"
    rows = _rows(results / "opening.csv")
    terms = np.array(
        [
            [float(row["shards"]), float(row["shards"]) * float(row["chunks_per_shard"]), float(row["sequences"]), 1.0]
            for row in rows
        ]
    )
    made = []
    for column, unit, factor, names in (
        ("open_seconds", "µs", 1e6, ("open_shard", "open_chunk", "open_sequence")),
        ("open_mib", "bytes", 2.0**20, ("open_shard_bytes", "open_chunk_bytes", "open_sequence_bytes")),
    ):
        values = np.array([float(row[column]) for row in rows])
        solution = _non_negative(terms / values[:, None])
        for name, value, thing in zip(names, solution, ("shard", "chunk", "sequence"), strict=False):
            what = f"{'time' if unit == 'µs' else 'peak memory'} of opening a cache, per {thing} of a checkpoint"
            made.append(_constant(name, float(f"{value * factor:.3g}"), unit, what, command, "opening.csv", rows[-1]))
    largest = max(rows, key=lambda row: int(row["shards"]))
    value = float(largest["continue_seconds"]) / int(largest["shards"]) * 1e6
    meaning = "time of a builder that finds out what is built, per shard of a checkpoint, on a local disk"
    made.append(_constant("continue_shard", float(f"{value:.3g}"), "µs", meaning, command, "opening.csv", largest))
    longest = max(rows, key=lambda row: int(row["sequences"]))
    value = float(longest["order_mib"]) * 2**20 / int(longest["sequences"])
    meaning = "peak memory of making the order of one epoch, per sequence, in every training process"
    made.append(
        _constant("order_sequence_bytes", float(f"{value:.3g}"), "bytes", meaning, command, "opening.csv", longest)
    )
    return made


def targets(results: Path) -> list[dict[str, Any]]:
    """Bytes per position by the cache's settings, of the fine-tuned teacher, as a cache's teacher is."""
    made = []
    for row in _rows(results / "cache_curve.csv"):
        if row["teacher"] != "fine-tuned" or not row["target"].startswith("top-"):
            continue
        support, _, rest = row["target"].partition(" + ")
        slots, _, top_p = support.removeprefix("top-").partition(", p ")
        samples, _, step = rest.partition(", 1/")
        made.append(
            {
                "top_k": int(slots),
                "top_p": float(top_p or 1),
                "tail_samples": 0 if samples == "bucket" else int(samples.split()[0]),
                "logp_steps_per_nat": int(step.split()[0]),
                "bytes_per_position": float(row["bytes_per_position"]),
            }
        )
    return made


def _constant(
    name: str, value: float, unit: str, meaning: str, command: str, csv_name: str, row: Row
) -> dict[str, Any]:
    where = {"hardware": row["hardware"], "commit": row["commit"]}
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "meaning": meaning,
        "command": command,
        "csv": csv_name,
        **where,
    }


def _last(path: Path, **wanted: str) -> Row:
    fitting = [row for row in _rows(path) if all(row[key] == value for key, value in wanted.items())]
    if not fitting:
        raise LookupError(f"{path} has no row with {wanted}")
    largest = max(int(row.get("vocabulary", 0)) for row in fitting)
    best = [row for row in fitting if int(row.get("vocabulary", 0)) == largest]
    most = max(int(row["positions"]) for row in best)
    return [row for row in best if int(row["positions"]) == most][-1]


def _rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _non_negative(terms: np.ndarray) -> np.ndarray:
    """Solve terms · x = 1 for the x ≥ 0 with the least squared error."""
    from scipy.optimize import nnls

    return nnls(terms, np.ones(len(terms)))[0]


if __name__ == "__main__":
    main()
    tomllib.loads(FILE.read_text(encoding="utf-8"))
