"""What a resumed run must know and must never decide again, and which of its checkpoints are whole.

checkpoint-<step>/   weights, optimizer.pt, scheduler.pt, rng_state*.pth, trainer_state.json
                     train_state.json: plan, t, λ, best so far, the digest of each file; sealed, and written last

Without its train_state.json a checkpoint is unfinished, and with a file that is not as it was written it is damaged:
neither is ever loaded. Training goes on from the newest one that is whole.
"""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cache_builder.data.digests import files_in, sha256_of
from cache_builder.errors import CacheDamagedError
from cache_builder.steps import read_record, write_record
from trainer.methods.pooled import PooledWeight
from trainer.methods.schedules import StageChoice
from trainer.methods.taid import TaidState

STATE_FILE = "train_state.json"
_OLDER_STATE_FILE = "progress.json"
"""Its name in checkpoints of before, which are resumed all the same."""
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,11})")
_NEEDED = ("optimizer.pt", "scheduler.pt", "trainer_state.json")
"""What Trainer, where it is not there, goes on without."""


@dataclass
class TrainState:
    """Saved with every checkpoint: choices that were made, TAID's t, the tail's λ, the best state so far, the cost."""

    plan: list[StageChoice] = field(default_factory=list)
    taid: TaidState | None = None
    pooled: PooledWeight | None = None
    """Of `distill.tail = "pooled"`."""
    best_step: int | None = None
    best_loss: float | None = None
    best_metric: float | None = None
    """Of the state in best/, where the tasks' own metric chose it."""
    seconds: float = 0.0
    """Training so far, over all processes that took their turn at it; not between the last checkpoint and a kill."""
    peak_memory_mib: float = 0.0
    """The most that one of them needed."""

    def note(self, step: int, loss: float, metric: float | None) -> bool:
        """Take a state as the best if it is: by its metric, of equal ones by loss; without a metric by loss alone."""
        if self.best_loss is not None:
            before = (self.best_metric or 0.0, -self.best_loss)
            if not (metric or 0.0, -loss) > before:
                return False
        self.best_step, self.best_loss, self.best_metric = step, loss, metric
        return True


_STATE = TypeAdapter(TrainState)


def save_state(state: TrainState, checkpoint: Path, global_step: int) -> None:
    """Mark a checkpoint as finished, with the digests of all that is in it."""
    write_record(checkpoint / STATE_FILE, {**asdict(state), "global_step": global_step, "files": files_in(checkpoint)})


def unmark(checkpoint: Path) -> None:
    """Make a checkpoint count as unfinished, before anything in it is written again or removed."""
    for name in (STATE_FILE, _OLDER_STATE_FILE):
        (checkpoint / name).unlink(missing_ok=True)


def checkpoints_of(output_dir: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints' steps and folders, oldest first; a folder of another name is none."""
    found = ((_NAME.fullmatch(path.name), path) for path in output_dir.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def last_whole_checkpoint(
    output_dir: Path, total_steps: int, say: Callable[[str], None]
) -> tuple[Path, TrainState] | None:
    """Return the newest whole checkpoint and its state; newer ones are removed, and `say` is told of those damaged."""
    damage: list[str] = []
    found: tuple[Path, TrainState] | None = None
    for step, path in reversed(checkpoints_of(output_dir)):
        try:
            state = _whole_state(path, step, total_steps)
        except CacheDamagedError as error:
            damage.append(str(error))
            state = None
        if state is not None:
            found = path, state
            break
        shutil.rmtree(path)
    if damage:
        onward = f"training goes on from {found[0].name}" if found else "training begins anew"
        say(f"{'; '.join(damage)}; so {onward}")
    return found


def drop_resume_state(output_dir: Path, kept_steps: frozenset[int]) -> None:
    """Remove what only a resumed run would need: the optimizer's state, and checkpoints that are not to be kept."""
    for step, checkpoint in checkpoints_of(output_dir):
        if step not in kept_steps:
            shutil.rmtree(checkpoint)
            continue
        for path in checkpoint.iterdir():
            if path.suffix in (".pt", ".pth") or path.name in ("trainer_state.json", STATE_FILE):
                path.unlink()


def _whole_state(checkpoint: Path, step: int, total_steps: int) -> TrainState | None:
    """Return a checkpoint's state, None where it is unfinished.

    Raises:
        CacheDamagedError: it is not what was written.
    """
    path = next((path for name in (STATE_FILE, _OLDER_STATE_FILE) if (path := checkpoint / name).is_file()), None)
    if path is None:
        return None
    value = read_record(path)
    if value.get("global_step") != step or step > total_steps:
        at = f"step {value.get('global_step')!r} of {total_steps:,}"
        raise CacheDamagedError(f"{checkpoint} is damaged: its {path.name} is of {at}, expected {step}")
    try:
        if "files" in value:
            _check_digests(checkpoint, value["files"])
        else:
            _check_older(checkpoint)
        return _state_of(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CacheDamagedError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheDamagedError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def _state_of(value: dict[str, Any]) -> TrainState:
    needed = {name: value[name] for name in ("plan", "taid", "best_step", "best_loss")}
    later = ("pooled", "best_metric", "seconds", "peak_memory_mib")  # which checkpoints of before may lack
    known = needed | {name: value[name] for name in later if name in value}
    return _STATE.validate_json(json.dumps(known), strict=True)


def _check_digests(checkpoint: Path, digests: dict[str, str]) -> None:
    for name, expected in digests.items():
        path = checkpoint / name
        if not path.is_file():
            raise CacheDamagedError(f"{path} is missing")
        if sha256_of(path) != expected:
            raise CacheDamagedError(f"{path} does not have the bytes that were written")


def _check_older(checkpoint: Path) -> None:
    """Check what can be of a checkpoint without digests: all is there, and torch's archives have their checksums."""
    for name in _NEEDED:
        if not (checkpoint / name).is_file():
            raise CacheDamagedError(f"{checkpoint / name} is missing")
    if not any(checkpoint.glob("rng_state*.pth")):
        raise CacheDamagedError(f"{checkpoint / 'rng_state.pth'} is missing")
    for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]:
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
            raise CacheDamagedError(f"{path} is damaged: {error}") from None
        if damaged is not None:
            raise CacheDamagedError(f"{path} is damaged: {damaged} in it does not have its checksum")
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise CacheDamagedError(f"{checkpoint / 'trainer_state.json'} is damaged: {error}") from None
