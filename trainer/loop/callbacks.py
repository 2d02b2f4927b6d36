"""What happens at the edges of a stage and of a step: teachers, TAID's t, the tail's λ, when to save, to evaluate."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from trainer.config import TrainingConfig
from trainer.loop.stage_machine import StageMachine
from trainer.methods.schedules import StageChoice


class StageCallback(TrainerCallback):
    """Enters stages, and says when to save and to evaluate."""

    def __init__(
        self,
        machine: StageMachine,
        choose_teacher: Callable[[int], StageChoice],
        config: TrainingConfig,
        save_at: frozenset[int],
        *,
        evaluates: bool,
    ) -> None:
        self.machine, self.choose_teacher = machine, choose_teacher
        self.config, self.save_at, self.evaluates = config, save_at, evaluates

    def on_epoch_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.machine.enter(state.global_step, self.choose_teacher, lambda: _clear_optimizer(optimizer))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, config = state.global_step, self.config
        is_edge = self.machine.ends_stage(step) or step in self.save_at
        every = config.eval_steps or self.machine.steps_per_epoch
        control.should_evaluate = self.evaluates and (is_edge or step % every == 0)
        control.should_save = is_edge or bool(config.save_steps and step % config.save_steps == 0)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do not save and evaluate again what the stage's last step just did."""
        control.should_evaluate = control.should_save = False


class TaidCallback(TrainerCallback):
    """Moves TAID's t once per optimizer step, by the loss of all processes; in evaluation nothing calls it."""

    def __init__(self, machine: StageMachine, start: float, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.machine, self.start, self.reduce = machine, start, reduce

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        machine = self.machine
        assert machine.saved.taid is not None
        loss = self.reduce(torch.as_tensor(machine.step_divergence).to(args.device)).item()
        machine.saved.taid.update(loss, state.global_step - 1, machine.total_steps, start=self.start)
        machine.step_divergence = 0.0


class PooledCallback(TrainerCallback):
    """Moves the λ of a pooled tail once per optimizer step, by the draws of all processes, for the next step."""

    def __init__(self, machine: StageMachine, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.machine, self.reduce = machine, reduce

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        machine = self.machine
        assert machine.saved.pooled is not None and machine.step_tail is not None
        error_V, noise = self.reduce(machine.step_tail).split([len(machine.step_tail) - 1, 1])
        machine.saved.pooled.update(float(error_V.square().sum(dtype=torch.float64)), float(noise))
        machine.step_tail = None


def _clear_optimizer(optimizer: Any) -> None:
    """Forget AdamW's moments in place; the parameter groups, and with them the learning rate, stay.

    In place, because accelerate, the scheduler and FSDP hold this very object; another one would train nothing.
    """
    getattr(optimizer, "optimizer", optimizer).state.clear()
