"""Which cells of a grid are stopped early: those that stay behind the leader at equal shares of their training. Pure.

    share of its steps    0 ─────── ¼ ─────── ½ ─────── ¾ ─────── 1
    leader's best loss           .41       .33       .30       .29       the best cell that was trained to its end
    this cell's                  .58       .42  ▲ above .41, the leader's at half of its share, twice in a row: stopped

Shares, not steps: the learning rate of a cell with more epochs is still high where a shorter one has come to its end.
Half of the share, because a higher rate is behind until it has decayed: at 43 % of its steps one of the demo's teachers
was a third above the leader's loss at 43 %, and ended within 2 % of it.
"""

from dataclasses import dataclass

PACE = 0.5
"""A cell is behind where it is no better than the leader was at this part of its share: it needs twice the training."""
IN_A_ROW = 2
FROM_SHARE = 0.25
FALLING_NATS = 0.001


@dataclass(frozen=True)
class History:
    """The held-out losses of a training, nats per position, with their steps; `total_steps` is of the whole of it."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    total_steps: int

    def best_until(self, share: float) -> float | None:
        """Return the lowest loss within a share of the steps; None where there is none yet."""
        found = [loss for step, loss in zip(self.steps, self.losses, strict=True) if self._share(step) <= share]
        return min(found, default=None)

    def shares(self) -> list[float]:
        """Return how much of the training was done at each loss, in (0, 1]."""
        return [self._share(step) for step in self.steps]

    def _share(self, step: int) -> float:
        return round(step / self.total_steps, 9)


def is_hopeless(history: History, leader: History | None) -> bool:
    """Say whether a training past a quarter of its steps is behind the leader at both of its last held-out losses."""
    if leader is None or len(history.steps) < IN_A_ROW:
        return False
    return all(_is_behind(history, leader, share) for share in history.shares()[-IN_A_ROW:])


def _is_behind(history: History, leader: History, share: float) -> bool:
    ours, theirs = history.best_until(share), leader.best_until(PACE * share)
    return share >= FROM_SHARE and ours is not None and theirs is not None and ours > theirs


def still_falling(history: History) -> bool:
    """Say whether the last loss is the lowest by more than `FALLING_NATS`: then more epochs may be better still."""
    return len(history.losses) > 1 and history.losses[-1] < min(history.losses[:-1]) - FALLING_NATS
