"""How far a training is: one bar over all steps on a terminal; elsewhere a line twice a minute."""

import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

LINE_SECONDS = 30


class StepProgress(TrainerCallback):
    """Shows the step, the steps in all and the latest loss."""

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
