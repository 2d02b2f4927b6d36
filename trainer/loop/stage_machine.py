"""Where a run is: the stages' edges, the stage that is trained now, and who teaches it. One epoch = one stage.

step        0 ──────────── T ──────────── 2T ──────────── 3T
stage       │      0       │       1      │       2      │        T = steps_per_stage
at an edge  the schedule chooses a teacher; the optimizer forgets; then the loader of the stage is made
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cache_builder.targets.tail import Tail
from trainer.loop.state import TrainState
from trainer.methods.schedules import StageChoice


@dataclass
class StageMachine:
    """The state that the training loop, its sampler and its callbacks share."""

    stages: int
    steps_per_stage: int
    steps_per_epoch: int
    """Steps of one pass over the data."""
    saved: TrainState
    """What a resumed run must know; replaced by the checkpoint's where a run is resumed."""
    stage: int = 0
    teacher: str | None = None
    step_divergence: torch.Tensor | float = 0.0
    """Sum of this process's divergences of the step so far, each with its share of the step; TAID's rule reads it."""
    step_tail: torch.Tensor | None = None
    """This process's `tail_error_V` and, last, `tail_noise` of the step so far; a pooled tail's rule reads them."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_stage * self.stages

    def ends_stage(self, step: int) -> bool:
        """Say whether the stage ends with this step, counted from 1."""
        return step % self.steps_per_stage == 0

    def enter(self, global_step: int, choose_teacher: Callable[[int], StageChoice], forget: Callable[[], None]) -> None:
        """Enter the stage of a step: a new one begins with `forget` and a choice, a resumed one had both before.

        Called before the stage's loader exists, so that no batch made ahead carries the teacher of the stage before.
        """
        stage = global_step // self.steps_per_stage
        if stage >= self.stages:  # a finished run is resumed: there is nothing left to choose
            return
        self.stage = stage
        if stage == len(self.saved.plan):
            forget()
            self.saved.plan.append(choose_teacher(stage))
        self.teacher = self.saved.plan[stage].choice

    def tail_of_step(self, tail: Tail | None) -> Tail | None:
        """Return what stands for the tail now: of a pooled one λ is the same in all of a step's micro-batches."""
        return (
            tail if tail is None or self.saved.pooled is None else replace(tail, sample_weight=self.saved.pooled.weight)
        )

    def note_tail(self, error_V: torch.Tensor, noise: torch.Tensor) -> None:
        """Take what a micro-batch says of a pooled tail."""
        if self.saved.pooled is not None:
            found = torch.cat([error_V, noise[None]]).float()
            self.step_tail = found if self.step_tail is None else self.step_tail + found
