"""Go on from the last whole checkpoint, which the main process finds for all, and refuse what does not fit.

main process: newest checkpoint whose files are as they were written ─▶ all processes load the same one
transformers: weights ─▶ optimizer, scheduler ─▶ RNG       a tensor too few or too many is refused by name
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import Trainer

from cache_builder.errors import ModelError, UserError, first_line
from cache_builder.models.weights import check_loaded
from cache_builder.narration import say
from trainer.loop.state import TrainState, last_whole_checkpoint


class ResumingTrainer(Trainer):
    """`Trainer` that resumes from whole checkpoints only."""

    def last_whole(self, output_dir: Path, total_steps: int) -> tuple[str | None, TrainState | None]:
        """Return the folder of the newest whole checkpoint and its state, the same on every process."""
        found: list[Any] = [None, None]
        if self.is_world_process_zero():
            found = list(last_whole_checkpoint(output_dir, total_steps, _warn) or found)
        broadcast_object_list(found)
        checkpoint, saved = found
        if checkpoint is not None and self.is_world_process_zero():
            step = int(Path(checkpoint).name.rpartition("-")[2])
            text = f"{output_dir}: goes on from step {step:,} of {total_steps:,}, its newest whole checkpoint"
            say("continued", text, folder=str(output_dir), step=step, steps=total_steps)
        return (None if checkpoint is None else str(checkpoint)), saved

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _refusing(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _refusing(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _refusing(checkpoint):
            super()._load_rng_state(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a resume state whose tensors are not the model's, of which transformers would only warn."""
        missing = set(load_result.missing_keys) - set(getattr(self.model, "all_tied_weights_keys", None) or {})
        info = {"missing_keys": missing, "unexpected_keys": load_result.unexpected_keys, "mismatched_keys": []}
        check_loaded(f"the checkpoint in {self.args.output_dir} that training goes on from", info)


@contextmanager
def _refusing(checkpoint: str | None) -> Iterator[None]:
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an unpickler's machine may be led to any: struct.error, OverflowError, KeyError, …
        raise ModelError(
            f"the checkpoint {checkpoint} that training would go on from cannot be loaded: {first_line(error)}; "
            "remove it, and training goes on from the one before"
        ) from error


def _warn(message: str) -> None:
    Console(stderr=True).print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)
