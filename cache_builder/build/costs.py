"""What building a cache took, kept beside the cache and never in it: its bytes do not depend on who built it how fast.

    <output_dir>/build/<checkpoint>/<when>-<host>-<pid>.json     one file per builder and checkpoint

A builder rewrites its own file after each shard, so killing it loses the note of the shard in flight and nothing else,
and builders on any number of hosts never write to the same file.
"""

import os
import re
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, ValidationError
from rich.console import Console

from cache_builder.atomic import write_json
from cache_builder.build.pace import Pace
from cache_builder.memory import peak_memory_mib, reset_peak_memory

BUILD_FOLDER = "build"


class BuildCost(BaseModel):
    """What one builder needed for its part of one checkpoint, the loading of the weights included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    cache: str
    """Fingerprint of the cache's manifest: a note of another cache does not count."""
    part: tuple[int, int]
    device: str
    positions: NonNegativeInt = 0
    """Captured by this builder, those included that a kill made worthless."""
    seconds: NonNegativeFloat = Field(0.0, allow_inf_nan=False)
    tokens: NonNegativeInt = 0
    """Run by the model, prompts and what ran twice included; 0 in notes of before they were counted."""
    waiting_seconds: NonNegativeFloat = Field(0.0, allow_inf_nan=False)
    """In which the model stood still: sequences were read, or the shard before was not yet written."""
    peak_memory_mib: NonNegativeFloat = Field(0.0, allow_inf_nan=False)
    """Of the GPU's allocator, or on a CPU the process's resident memory."""
    finished: bool = False
    """Whether it came to the end of its part of the checkpoint."""


class CostNote:
    """The clock and the memory of one builder at one checkpoint; both start when it is made."""

    def __init__(
        self,
        output_dir: Path,
        checkpoint: str,
        cache: str,
        part: tuple[int, int],
        console: Console,
        pace: Pace | None = None,
    ) -> None:
        """Start the clock; `pace` is its builder's, which may have run other checkpoints before."""
        host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{host}-{os.getpid()}.json"
        self.path = output_dir / BUILD_FOLDER / checkpoint / name
        self.cost = BuildCost(checkpoint=checkpoint, cache=cache, part=part, device=device_name())
        self.console, self.pace = console, pace or Pace()
        self.before = replace(self.pace)
        reset_peak_memory()
        self.started = time.perf_counter()

    def add(self, positions: int = 0, *, finished: bool = False) -> None:
        """Measure what it took so far, and write it."""
        self.measure(positions, finished=finished)
        write_cost(self.path, self.cost, self.console)

    def measure(self, positions: int = 0, *, finished: bool = False) -> None:
        """Bring `cost` to this moment, with so many more positions."""
        self.cost = self.cost.model_copy(
            update={
                "positions": self.cost.positions + positions,
                "seconds": time.perf_counter() - self.started,
                "tokens": self.pace.tokens - self.before.tokens,
                "waiting_seconds": self.pace.waiting_seconds - self.before.waiting_seconds,
                "peak_memory_mib": peak_memory_mib(),
                "finished": finished,
            }
        )


def speed(cost: BuildCost) -> str:
    """Say how fast a builder's checkpoint ran, how much of that it waited, and what memory it took."""
    seconds = max(cost.seconds, 1e-9)
    return (
        f"{cost.tokens / seconds:,.0f} tokens/s, waiting for data {cost.waiting_seconds / seconds:.1%}, "
        f"peak memory {cost.peak_memory_mib:,.0f} MiB"
    )


def write_cost(path: Path, cost: BuildCost, console: Console) -> None:
    """Write a note; a disk that refuses it does not stop the build."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, cost.model_dump())
    except OSError as error:
        console.print(f"no note of this build's time and memory: {error}", markup=False, highlight=False)


def device_name() -> str:
    """Name what this process computes on, as a reader of a report would."""
    # Imported here, because the report reads these notes and needs no torch.
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def read_costs(output_dir: Path) -> tuple[list[BuildCost], list[str]]:
    """Return the notes of a run folder, oldest first, and a sentence on each that cannot be read."""
    costs: list[BuildCost] = []
    unreadable: list[str] = []
    for path in sorted((output_dir / BUILD_FOLDER).glob("*/*.json"), key=lambda path: path.name):
        try:
            costs.append(BuildCost.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            unreadable.append(f"{path.relative_to(output_dir)} is not a note of what building took: {reason}")
    return costs, unreadable
