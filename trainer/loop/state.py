"""What a resumed run must know and must never decide again, and which checkpoint of it is whole.

checkpoint-<step>/train_state.json    written last: without it a checkpoint is unfinished, and never loaded
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cache_builder.atomic import write_json
from trainer.methods.schedules import StageChoice
from trainer.methods.taid import TaidState

STATE_FILE = "train_state.json"
_OLDER_STATE_FILE = "progress.json"
"""Its name in checkpoints of before, which are resumed all the same."""


@dataclass
class TrainState:
    """Saved with every checkpoint: the choices that were made, TAID's t, the best state so far, what it has cost."""

    plan: list[StageChoice] = field(default_factory=list)
    taid: TaidState | None = None
    best_step: int | None = None
    best_loss: float | None = None
    seconds: float = 0.0
    """Training so far, over all processes that took their turn at it; not between the last checkpoint and a kill."""
    peak_memory_mib: float = 0.0
    """The most that one of them needed."""


def save_state(state: TrainState, checkpoint: Path, global_step: int) -> None:
    """Mark a checkpoint as finished."""
    write_json(checkpoint / STATE_FILE, {**asdict(state), "global_step": global_step})


def unmark(checkpoint: Path) -> None:
    """Make a checkpoint count as unfinished, before anything in it is written again or removed."""
    for name in (STATE_FILE, _OLDER_STATE_FILE):
        (checkpoint / name).unlink(missing_ok=True)


def last_finished_checkpoint(output_dir: Path, may_remove: bool) -> Path | None:
    """Return the newest finished checkpoint; with `may_remove`, unfinished ones are removed."""
    checkpoints = sorted(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    finished = [path for path in checkpoints if _state_file(path) is not None]
    if may_remove:
        for path in set(checkpoints) - set(finished):
            shutil.rmtree(path)
    return finished[-1] if finished else None


def load_state(checkpoint: Path) -> TrainState:
    """Return what `save_state` wrote."""
    path = _state_file(checkpoint)
    assert path is not None, f"{checkpoint} is not finished"
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return TrainState(
        plan=[StageChoice(**stage) for stage in value["plan"]],
        taid=TaidState(**value["taid"]) if value["taid"] else None,
        best_step=value["best_step"],
        best_loss=value["best_loss"],
        seconds=value.get("seconds", 0.0),
        peak_memory_mib=value.get("peak_memory_mib", 0.0),
    )


def _state_file(checkpoint: Path) -> Path | None:
    return next((path for name in (STATE_FILE, _OLDER_STATE_FILE) if (path := checkpoint / name).is_file()), None)
