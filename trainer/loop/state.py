"""What a resumed run must know, and which checkpoint is whole.

A checkpoint is finished when its progress.json is there, which is written last; any other is removed, never loaded.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cache_builder.steps import write_json
from trainer.methods.schedules import StageChoice
from trainer.methods.weighting import TaidState

PROGRESS_FILE = "progress.json"


@dataclass
class Progress:
    """What a resumed run must know and must never decide again; saved with every checkpoint."""

    plan: list[StageChoice] = field(default_factory=list)
    taid: TaidState | None = None
    best_step: int | None = None
    best_loss: float | None = None
    seconds: float = 0.0
    """Training so far, over all processes that took their turn at it; not between the last checkpoint and a kill."""
    peak_memory_mib: float = 0.0
    """The most that one of them needed."""


def save_progress(progress: Progress, checkpoint: Path, global_step: int) -> None:
    """Mark a checkpoint as finished."""
    write_json(checkpoint / PROGRESS_FILE, {**asdict(progress), "global_step": global_step})


def last_finished_checkpoint(output_dir: Path, may_remove: bool) -> Path | None:
    """Return the newest finished checkpoint; with `may_remove`, unfinished ones are removed."""
    checkpoints = sorted(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    finished = [path for path in checkpoints if (path / PROGRESS_FILE).is_file()]
    if may_remove:
        for path in set(checkpoints) - set(finished):
            shutil.rmtree(path)
    return finished[-1] if finished else None


def load_progress(checkpoint: Path) -> Progress:
    """Return what `save_progress` wrote."""
    value = json.loads((checkpoint / PROGRESS_FILE).read_text())
    return Progress(
        plan=[StageChoice(**stage) for stage in value["plan"]],
        taid=TaidState(**value["taid"]) if value["taid"] else None,
        best_step=value["best_step"],
        best_loss=value["best_loss"],
        seconds=value.get("seconds", 0.0),
        peak_memory_mib=value.get("peak_memory_mib", 0.0),
    )
