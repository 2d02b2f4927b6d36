"""What a run took beyond its trainings: each checkpoint's build, and a method's steps with the teacher live in memory.

<run>/build/<checkpoint>/*.json     notes of the cache's builders    -> build_costs, summed by checkpoint
<run>/live_teacher.json             tools/live_teacher.py            -> read_live
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt

from cache_builder.build.costs import BuildCost
from trainer.report.run.run_files import UNUSABLE, first_line

LIVE_FILE = "live_teacher.json"


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointCost(Record):
    """All builders' work on one checkpoint."""

    checkpoint: str
    builders: int
    unfinished: int
    """Builders that were stopped before the end of their part."""
    positions: int
    seconds: float
    """Of all builders together; the clock on the wall shows less where they worked at once."""
    peak_memory_mib: float
    """The largest of the builders' peaks."""
    devices: tuple[str, ...]
    tokens: int = 0
    """0 where they were not counted."""
    waiting_seconds: float = 0.0
    """Of all builders together, as `seconds`."""


class Arm(Record):
    """One way of getting the teacher's word at each step."""

    seconds_per_step: FiniteFloat
    rounds: list[FiniteFloat]
    """Each round's median."""
    peak_memory_mib: FiniteFloat
    """Above what the process had before it loaded a model."""


class Agreement(Record):
    """The loss of the same batches and the same student, from the cache and from the live teacher."""

    loss_cache: FiniteFloat
    loss_live: FiniteFloat
    sampling_error: FiniteFloat
    """Standard deviation that the tail's samples give the difference."""
    codes: FiniteFloat
    """The most that the rounded log-probabilities can change."""
    arithmetic: FiniteFloat
    """What other batches and another order of sums may change at this dtype."""
    one_sided: bool
    """The cache's divergence is on K+G outcomes, so it is a lower bound."""
    sequences: NonNegativeInt

    @property
    def difference(self) -> float:
        return self.loss_cache - self.loss_live

    @property
    def allowed(self) -> float:
        return 4 * self.sampling_error + self.codes + self.arithmetic

    @property
    def holds(self) -> bool:
        return self.difference <= self.allowed and (self.one_sided or self.difference >= -self.allowed)


class LiveTeacher(Record):
    """One method's steps, measured both ways."""

    method: str
    seed: int
    checkpoint: str
    steps: int
    sequences_per_step: int
    teacher_parameters: int
    student_parameters: int
    device: str
    commit: str
    cache: Arm
    live: Arm
    time_ratio: FiniteFloat
    """live / cache, the median of the rounds' ratios."""
    agreement: Agreement

    @property
    def memory_ratio(self) -> float:
        return self.live.peak_memory_mib / max(self.cache.peak_memory_mib, 1e-9)


class LiveTeachers(Record):
    measurements: list[LiveTeacher]


def read_live(folder: Path) -> list[LiveTeacher]:
    """Return what was measured of a run, a record per method.

    Raises:
        OSError, ValueError: the file is not there, or not what the program writes.
    """
    return LiveTeachers.model_validate_json((folder / LIVE_FILE).read_bytes()).measurements


def live_or_missing(folder: Path, missing: list[str]) -> list[LiveTeacher]:
    """Return what was measured with live teachers; nothing where it was not, or cannot be read."""
    if not (folder / LIVE_FILE).is_file():
        return []
    try:
        return read_live(folder)
    except UNUSABLE as error:
        missing.append(f"{LIVE_FILE} cannot be used: {first_line(error)}")
        return []


def build_costs(notes: Sequence[BuildCost], cache: str, checkpoints: Sequence[str]) -> dict[str, CheckpointCost]:
    """Sum the notes of one cache by checkpoint, in the cache's order; checkpoints without a note are left out."""
    found: dict[str, CheckpointCost] = {}
    for name in checkpoints:
        ours = [note for note in notes if note.checkpoint == name and note.cache == cache]
        if ours:
            found[name] = CheckpointCost(
                checkpoint=name,
                builders=len(ours),
                unfinished=sum(not note.finished for note in ours),
                positions=sum(note.positions for note in ours),
                seconds=sum(note.seconds for note in ours),
                tokens=sum(note.tokens for note in ours),
                waiting_seconds=sum(note.waiting_seconds for note in ours),
                peak_memory_mib=max(note.peak_memory_mib for note in ours),
                devices=tuple(dict.fromkeys(note.device for note in ours)),
            )
    return found
