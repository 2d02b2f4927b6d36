"""Where a run is: the stages' edges, the stage that is trained now, and who teaches it. One epoch = one stage.

step        0 ──────────── T ──────────── 2T ──────────── 3T
stage       │      0       │       1      │       2      │        T = steps_per_stage
at an edge  the schedule chooses a teacher; the optimizer forgets; then the loader of the stage is made
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

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
