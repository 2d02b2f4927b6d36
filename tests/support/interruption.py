"""Stop a training run at a step, as if it had been killed there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from trainer.loop.callbacks import StageCallback


class Stop(Exception):
    """The run ended here."""


@contextmanager
def stops_at(step: int) -> Iterator[None]:
    """Let what is trained within die at the beginning of the step after `step`; that it does is asserted."""

    def on_step_begin(self: StageCallback, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == step:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(StageCallback, "on_step_begin", on_step_begin)
        yield
