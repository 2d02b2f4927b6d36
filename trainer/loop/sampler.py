"""The rows of the current stage, each with the checkpoint that teaches it, so that a batch cannot carry another's."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from trainer.loop.order import RowStream, group_lengths
from trainer.loop.stage_machine import StageMachine


class StageSampler(Sampler[tuple[str | None, int]]):
    """(teacher, row) pairs of one stage; a pure function of the machine's stage and the stream."""

    def __init__(
        self, machine: StageMachine, stream: RowStream, rows_per_step: int, grouped_lengths: np.ndarray | None
    ) -> None:
        self.machine, self.stream, self.rows_per_step = machine, stream, rows_per_step
        self.grouped_lengths = grouped_lengths

    def __len__(self) -> int:
        return self.machine.steps_per_stage * self.rows_per_step

    def __iter__(self) -> Iterator[tuple[str | None, int]]:
        # Read once: the machine moves on while a loader that has prefetched is still being emptied.
        teacher, start = self.machine.teacher, self.machine.stage * len(self)
        rows = self.stream.rows(start, start + len(self))
        if self.grouped_lengths is not None:
            rows = group_lengths(rows, self.grouped_lengths, self.rows_per_step, self.stream.seed, start)
        for row in rows:
            yield teacher, row
