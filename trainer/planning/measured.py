"""The measured figures that a plan is made from, each with where it was measured; `measured.toml` is the one table.

    python -m tools.measured_table        makes it from tools/results/*.csv

Nothing here is an assumption, and no assumption is here: prices, a device's peak and how much of it is reached are
inputs of a plan (trainer/planning/hardware.py).
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("measured.toml")


@dataclass(frozen=True)
class Constant:
    """One figure."""

    name: str
    value: float
    unit: str
    meaning: str
    command: str
    csv: str
    hardware: str
    commit: str


@dataclass(frozen=True)
class StoredTarget:
    """Bytes of one position on disk, by the settings of the cache."""

    top_k: int
    top_p: float
    tail_samples: int
    logp_steps_per_nat: int
    bytes_per_position: float


@dataclass(frozen=True)
class Measured:
    """Every figure, by name."""

    constants: dict[str, Constant]
    targets: tuple[StoredTarget, ...]

    def __getitem__(self, name: str) -> float:
        return self.constants[name].value

    def bytes_per_position(self, top_k: int, top_p: float, tail_samples: int, steps: int) -> tuple[float, str]:
        """Return the bytes of one position on disk, and how they are known.

        What was measured where these settings were; else a straight line through what was, in slots, samples and bits
        of a log-probability. A `top_p` that was not measured counts as 1, which is more.
        """
        for row in self.targets:
            if (row.top_k, row.top_p, row.tail_samples, row.logp_steps_per_nat) == (top_k, top_p, tail_samples, steps):
                return row.bytes_per_position, "measured with these settings"
        rows = [row for row in self.targets if row.top_p == 1.0]
        terms = np.array([_terms(row.top_k, row.tail_samples, row.logp_steps_per_nat) for row in rows])
        values = np.array([row.bytes_per_position for row in rows])
        solution = np.linalg.lstsq(terms, values, rcond=None)[0]
        error = float(np.abs(terms @ solution - values).max())
        found = float(np.dot(_terms(top_k, tail_samples, steps), solution))
        how = f"by a line through {len(rows)} measured settings, which it misses by {error:.1f} B at most"
        return found, how if top_p == 1.0 else f"{how}; what top_p = {top_p:g} saves was not measured here"


@cache
def load_measured() -> Measured:
    """Read the table."""
    document = tomllib.loads(FILE.read_text(encoding="utf-8"))
    constants = [Constant(**entry) for entry in document["constant"]]
    targets = tuple(StoredTarget(**entry) for entry in document["target"])
    return Measured({constant.name: constant for constant in constants}, targets)


def _terms(top_k: int, tail_samples: int, steps: int) -> list[float]:
    return [1.0, top_k, tail_samples, top_k * float(np.log2(steps / 128))]
