"""Stop a training run at a step, as if it had been killed there."""

from typing import Any

import pytest

from trainer.loop.callbacks import StageCallback


class Stop(Exception):
    """The run ended here."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Die at the beginning of the step after `step`."""

    def on_step_begin(self: StageCallback, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == step:
            raise Stop

    monkeypatch.setattr(StageCallback, "on_step_begin", on_step_begin)
