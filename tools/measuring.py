"""What the benchmarks share: rounds of variants side by side, peak memory, the machine's name, a table, a CSV row.

Times are medians over rounds in which every variant runs once, so that a slow spell of the machine touches all of them;
ratios are medians of the rounds' ratios. Processor time is that of all threads: on a busy machine its ratios are worth
more than the clock's, on a GPU nothing. Peak memory is above what was resident before: on Linux by resetting the
kernel's high-water mark (all threads and libraries counted), on a GPU by the allocator's.
"""

import csv
import ctypes
import gc
import io
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from cache_builder.atomic import write_text
from cache_builder.data.batching import collate

RESULTS = Path(__file__).parent / "results"
SEQUENCE_TOKENS = 512


@dataclass(frozen=True)
class Measured:
    """One variant's figures."""

    variant: str
    seconds: float
    ratio: float
    """Of the time of the first variant."""
    peak_mib: float | None
    """None where it was not asked for, or where the system has no resettable high-water mark."""
    processor_ratio: float
    """Of the processor time of the first variant."""


@dataclass
class Deadline:
    """When measuring is to end, and what it had no time or no memory for."""

    ends: float = float("inf")
    """By `time.monotonic`."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Each variant, and why."""

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.ends


def measure(
    variants: dict[str, Callable[[], None]],
    rounds: int,
    device: torch.device,
    *,
    peaks: bool = True,
    deadline: Deadline | None = None,
) -> list[Measured]:
    """Run every variant for its peak memory, if asked for, then `rounds` times in turns; ratios are to the first.

    After the deadline no variant is begun but the first, and no round but the first.
    """
    deadline = deadline or Deadline()
    next(iter(variants.values()))()  # what libraries keep for good is no variant's
    peak: dict[str, float | None] = {}
    for name, variant in variants.items():
        if peak and deadline.is_over:
            deadline.left_out.append((name, "time over"))
            continue
        try:
            peak[name] = _peak_mib(variant, device) if peaks else None
        except torch.OutOfMemoryError:
            deadline.left_out.append((name, "out of memory"))
    variants = {name: variants[name] for name in peak}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    processor: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        if turn and deadline.is_over:
            break
        for name, variant in variants.items():
            _synchronise(device)
            start, processor_start = time.perf_counter(), time.process_time()
            variant()
            _synchronise(device)
            seconds[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - processor_start)
    first = next(iter(variants))
    return [
        Measured(
            name,
            statistics.median(seconds[name]),
            median_ratio(seconds[name], seconds[first]),
            peak[name],
            median_ratio(processor[name], processor[first]),
        )
        for name in variants
    ]


def median_ratio(values: list[float], yardsticks: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(value / base for value, base in zip(values, yardsticks, strict=True))


def report(measured: list[Measured], csv_name: str, settings: dict[str, object], title: str | None = None) -> None:
    """Print a table, and append a row per variant with commit and hardware to `results/<csv_name>`.

    Args:
        title: what stands above the table; the settings unless given.
    """
    if title is None:
        title = ", ".join(
            f"{name} {value:,}" if type(value) is int else f"{name} {value}" for name, value in settings.items()
        )
    table = Table("variant", "seconds", "ratio", "processor ratio", "peak MiB", "ratio", title=title)
    base_peak = measured[0].peak_mib
    rows = []
    for row in measured:
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        peak_ratio = f"{row.peak_mib / base_peak:.3f}" if row.peak_mib is not None and base_peak else ""
        processor = f"{row.processor_ratio:.3f}"
        table.add_row(row.variant, f"{row.seconds:.3f}", f"{row.ratio:.3f}", processor, peak, peak_ratio)
        figures = {"seconds": f"{row.seconds:.4f}", "ratio": f"{row.ratio:.3f}", "peak_mib": peak}
        figures |= {"peak_ratio": peak_ratio, "processor_ratio": processor}
        rows.append(settings | {"variant": row.variant} | figures)
    append_rows(csv_name, [{"torch": torch.__version__} | row for row in rows])
    Console(width=110).print(table)


def append_rows(csv_name: str, rows: list[dict[str, object]]) -> None:
    """Append rows of one shape, with commit and hardware, to `results/<csv_name>`.

    What the rows that are there do not have is left empty in them, and the other way round.
    """
    path = RESULTS / csv_name
    path.parent.mkdir(exist_ok=True)
    common: dict[str, object] = {"commit": commit(), "hardware": hardware()}
    there: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            there = list(csv.DictReader(file))
    every = [*there, *(common | row for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(name for row in every for name in row)), restval="", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(every)
    write_text(path, text.getvalue())  # whole or not at all: hours of measuring lie in it


def make_model(vocab_size: int, hidden_size: int, layers: int, dtype: torch.dtype, device: torch.device, seed: int = 0):  # type: ignore[no-untyped-def]
    """A random Llama with tied embeddings, made in `dtype` on `device`: a processor takes minutes over billions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        tie_word_embeddings=True,
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def random_batch(
    vocab_size: int, tokens: int, completion_share: float, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return a `Batch` of random sequences of 512 tokens, so much of each to be learned, on a device."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, vocab_size, (tokens // SEQUENCE_TOKENS, SEQUENCE_TOKENS))
    completion = np.arange(SEQUENCE_TOKENS) >= round(SEQUENCE_TOKENS * (1 - completion_share))
    batch = collate([(row, completion) for row in rows], pad_id=0)
    return {name: tensor.to(device) for name, tensor in batch.items()}  # type: ignore[attr-defined]


def parameters(model: torch.nn.Module) -> int:
    """Count a model's parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _peak_mib(variant: Callable[[], None], device: torch.device) -> float | None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        variant()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if platform.system() != "Linux":
        variant()
        return None
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kib("VmRSS")
    variant()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def commit() -> str:
    """Return the commit that is checked out, with a + where the packages differ from it."""
    root = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno", "--", "../cache_builder", "../trainer"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def hardware() -> str:
    """Name the GPU, or the processor and how many threads torch uses of it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    if platform.system() == "Linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {torch.get_num_threads()} threads"
