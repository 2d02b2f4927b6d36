"""What happens at the edges of a stage and of a step: teachers, TAID's t, when to save and to evaluate, the bar."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

if TYPE_CHECKING:
    from trainer.loop.trainer import SequenceTrainer

LINE_SECONDS = 30


class StageCallback(TrainerCallback):
    """Begins stages, moves TAID's t, and says when to save and to evaluate."""

    def __init__(self, trainer: "SequenceTrainer") -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        stage = state.global_step // trainer.steps_per_stage
        if stage >= trainer.settings.stages:
            return
        trainer.sampler.stage = stage
        if stage == len(trainer.progress.plan):
            _clear_optimizer(trainer.optimizer)
            trainer.progress.plan.append(trainer.choose_teacher(stage))
        trainer.sampler.teacher = trainer.progress.plan[stage].choice

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, step = self.trainer, state.global_step
        if trainer.progress.taid is not None:
            loss = trainer.accelerator.reduce(torch.as_tensor(trainer.step_loss).to(args.device), "sum").item()
            assert trainer.settings.taid_start is not None
            trainer.progress.taid.update(loss, step, trainer.total_steps, start=trainer.settings.taid_start)
            trainer.step_loss = 0.0
        ends_stage = step % trainer.steps_per_stage == 0
        config = trainer.settings.config
        control.should_evaluate = trainer.validation is not None and (
            ends_stage or step % (config.eval_steps or trainer.steps_per_epoch) == 0 or step in trainer.settings.save_at
        )
        control.should_save = (
            ends_stage or step in trainer.settings.save_at or bool(config.save_steps and step % config.save_steps == 0)
        )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do not save and evaluate again what the stage's last step just did."""
        control.should_evaluate = control.should_save = False


class StepProgress(TrainerCallback):
    """One progress bar over all steps on a terminal; elsewhere a line twice a minute."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.name = ""
        self.said_at = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            in_distill = folder.name.startswith("seed-")
            self.name = f"{folder.parent.name} {folder.name}" if in_distill else folder.name
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, disable=None)
            self.said_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.bar is None or not logs or "loss" not in logs:
            return
        loss = f"{float(logs['loss']):.3f}"
        self.bar.set_postfix(loss=loss, refresh=False)
        if self.bar.disable and time.monotonic() - self.said_at > LINE_SECONDS:
            self.said_at = time.monotonic()
            print(f"{self.name}: step {state.global_step:,} of {state.max_steps:,}, loss {loss}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def _clear_optimizer(optimizer: Any) -> None:
    """Forget AdamW's moments in place; the parameter groups, and with them the learning rate, stay."""
    getattr(optimizer, "optimizer", optimizer).state.clear()
