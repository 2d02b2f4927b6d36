"""Which students the study trains, and in which order: blocks of cells, seed by seed.

A cell is everything but the seed; the teacher, its cache and the student SFT are shared by all cells that name the same
data, noise, number of checkpoints and size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

SEEDS = 5


@dataclass(frozen=True)
class Cell:
    """One combination of factors."""

    data: str = "demo"
    noise: float = 0.25
    """Share of wrong training answers; of the demo's notes alone."""
    checkpoints: int = 4
    size: str = "small"
    """A key of SIZES."""
    epochs_per_stage: int = 6
    start: str = "base"
    """`distill.init`."""
    aw_source: str = "train"
    metric: str = "kl"
    """`distill.schedule_metric`."""
    alpha: float = 0.5
    method: str = "td"

    def columns(self) -> dict[str, str]:
        """Return the factors as a CSV line has them."""
        return {field.name: str(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class Size:
    """A student of the demo's notes, with learning rates by `footsteps tune`; the teacher's hidden size is 96."""

    hidden_size: int
    sft_rate: float
    distill_rate: float


SIZES = {"small": Size(24, sft_rate=1.2e-2, distill_rate=1.3e-2), "large": Size(48, sft_rate=6e-3, distill_rate=3.2e-3)}
"""The small one's rates are the demo's own. Held-out losses of the large one, 25 % wrong, 2 epochs a stage:

    SFT   3e-3 .2763   6e-3 .2595   1.2e-2 .3783        TD   1.6e-3 .4463   3.2e-3 .2901   6.5e-3 .2968   1.3e-2 .3762
"""


def cells(*methods: str, **factors: object) -> list[Cell]:
    """Return a cell for each method, the other factors being equal."""
    return [Cell(method=method, **factors) for method in methods]  # type: ignore[arg-type]


MAIN = ("td", "scd", "reach", "td+aw")
CLINC150: dict[str, object] = {"data": "clinc150", "noise": 0.0, "epochs_per_stage": 1}
SNIPS: dict[str, object] = {"data": "snips", "noise": 0.0, "checkpoints": 3, "epochs_per_stage": 1, "start": "sft"}
BLOCKS: dict[str, list[Cell]] = {
    "noise": [*cells(*MAIN), *cells("td+aw", aw_source="crossfit")],
    "short": cells("sft", *MAIN, epochs_per_stage=2),
    "clean-short": cells("sft", *MAIN, noise=0.0, epochs_per_stage=2),
    "noise-more": [*cells("sft", "scd+aw"), *cells("scd+aw", aw_source="crossfit")],
    "clean": cells("sft", *MAIN, "scd+aw", noise=0.0),
    "start": cells("sft", "td", "scd", "reach", "td+aw", start="sft", epochs_per_stage=2),
    "alpha": [*cells("sft", "td"), *cells("td", alpha=1.0), *cells("td", "scd", "reach", alpha=0.75)],
    "alpha-short": [*cells("sft", "td", epochs_per_stage=2), *cells("td", alpha=1.0, epochs_per_stage=2)],
    "alpha-clean": [
        *cells("sft", "td", epochs_per_stage=2, noise=0.0),
        *cells("td", alpha=1.0, epochs_per_stage=2, noise=0.0),
    ],
    "clinc150": cells("sft", *MAIN, **CLINC150),
    "snips": cells("sft", *MAIN, **SNIPS),
    "alpha-people": [
        *cells("sft", "td", **CLINC150),
        *cells("td", alpha=1.0, **CLINC150),
        *cells("sft", "td", **SNIPS),
        *cells("td", alpha=1.0, **SNIPS),
    ],
    "some-noise": cells("sft", "td", "td+aw", noise=0.1, epochs_per_stage=2),
    "capacity": cells("sft", "td", "scd", "reach", "td+aw", size="large", epochs_per_stage=2),
    "checkpoints": [
        *cells("td", "cd", "scd", "reach", checkpoints=2, epochs_per_stage=4),
        *cells("td", "cd", "scd", "reach", checkpoints=8, epochs_per_stage=1),
    ],
    "risk": cells("scd", metric="risk", epochs_per_stage=2),
    "in-order": cells("cd", epochs_per_stage=2),
}
"""By name, in the order in which they are trained."""


def students(blocks: list[str], seeds: int = SEEDS) -> Iterator[tuple[Cell, int]]:
    """Yield every student of the blocks once: block by block, and within a block seed by seed."""
    seen: set[tuple[Cell, int]] = set()
    for block in blocks:
        for seed in range(seeds):
            for cell in BLOCKS[block]:
                if (cell, seed) not in seen:
                    seen.add((cell, seed))
                    yield cell, seed
