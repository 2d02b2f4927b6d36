"""How far a training is: one bar over all steps on a terminal; elsewhere a line twice a minute."""

import os
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from cache_builder.narration import LINE_SECONDS, LINES, duration, manner, say


class StepProgress(TrainerCallback):
    """Shows the step, the steps in all and the latest loss."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.name = ""
        self.said_at = self.began_at = 0.0
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            in_distill = folder.name.startswith("seed-")
            self.name = f"{folder.parent.name} {folder.name}" if in_distill else folder.name
            bars = manner() == "text" and LINES not in os.environ
            silent = None if bars else True  # None: a bar on a terminal alone
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, disable=silent)
            self.said_at = self.began_at = time.monotonic()
            self.first_step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.bar is None or not logs or "loss" not in logs:
            return
        loss, now = float(logs["loss"]), time.monotonic()
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if not self.bar.disable or (manner() == "text" and now - self.said_at <= LINE_SECONDS):
            return
        self.said_at = now
        # Since this process began: a training that goes on from a checkpoint has not made the steps before it.
        steps_per_second = (state.global_step - self.first_step) / max(now - self.began_at, 1e-9)
        left = (state.max_steps - state.global_step) / max(steps_per_second, 1e-9)
        say(
            "step",
            f"{self.name}: step {state.global_step:,} of {state.max_steps:,}, loss {loss:.3f}, "
            f"{steps_per_second:.2f} steps/s, {duration(left)} left",
            name=self.name,
            step=state.global_step,
            steps=state.max_steps,
            loss=loss,
            steps_per_second=round(steps_per_second, 4),
            tokens_per_second=round(logs.get("tokens_per_second", 0.0), 1),
            seconds_left=round(left, 1),
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
