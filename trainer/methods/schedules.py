"""Which checkpoint teaches a stage: from numbers to a choice, its reasons and its margin.

none        nobody
best        the best checkpoint
in-order    checkpoint i teaches stage i
scheduled   j* = argmin_j of two terms, by the metric:
kl      j* = argmin_j  mean_probe KL(p_best‖p_j) + mean_probe KL(q‖p_j)      §5.2; on the probe's shared ids ∪ {tail}
risk    j* = argmin_j  R(p_j) + |R(q) − R(p_j)|                              §5.1; R = mean loss per position, nats
reachable   ours: the same with the divergence that the stage will minimise
forward_kl  j* = argmin_j  mean_probe KL(p_best‖p_j) + mean_probe KL(p_j‖q)

KL(q‖p_j) charges a confident teacher without bound for what a diffuse student still allows; KL(p_j‖q) charges the
student for what the teacher says, at most about log V at the start, and so is of one size with the first term.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from cache_builder.errors import ConfigError

Metric = Literal["kl", "risk", "forward_kl"]

TERM_NAMES: dict[Metric, tuple[str, str]] = {
    "kl": ("anchor_kl", "student_kl"),
    "risk": ("anchor_risk", "student_gap"),
    "forward_kl": ("anchor_kl", "teacher_kl"),
}
"""What the plan file calls the two terms of a metric."""


@dataclass(frozen=True)
class StageChoice:
    """Who teaches a stage, and why: both terms for every checkpoint, and how far ahead of the second the choice was."""

    stage: int
    first_step: int
    choice: str | None
    quality: dict[str, float] = field(default_factory=dict)
    """KL(p_best‖p_j) or R(p_j), nats per position."""
    distance: dict[str, float] = field(default_factory=dict)
    """KL(q‖p_j), |R(q) − R(p_j)| or KL(p_j‖q), nats per position."""
    margin: float | None = None
    """How far the second-best sum of both terms was, nats per position."""
    margin_error: float | None = None
    """Its standard error over the probe's sequences, in pairs; a choice within it could as well have been the other."""

    def to_json(self, metric: Metric) -> dict[str, Any]:
        """Return the stage as the plan file has it, its two terms under the names that the metric gives them."""
        names, value = TERM_NAMES[metric], asdict(self)
        quality, distance = value.pop("quality"), value.pop("distance")
        return {**value, names[0]: quality, names[1]: distance} if quality else value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StageChoice":
        """Restore what `to_json` wrote."""
        value = dict(value)
        quality, distance = _taken(value, 0), _taken(value, 1)
        return cls(quality=quality, distance=distance, **value)


def _taken(value: dict[str, Any], place: int) -> dict[str, float]:
    """Take the term at `place` out of a stage's record, whatever its metric calls it."""
    found = [value.pop(names[place]) for names in TERM_NAMES.values() if names[place] in value]
    return found[0] if found else {}


class ProbeSums(NamedTuple):
    """Both terms together, summed over each sequence of the probe."""

    total_S: dict[str, np.ndarray]
    """By checkpoint, nats, f64."""
    positions_S: np.ndarray


def choose(
    stage: int,
    first_step: int,
    quality: dict[str, float],
    distance: dict[str, float],
    sums: ProbeSums | None = None,
) -> StageChoice:
    """Return the checkpoint with the least sum of both terms; of equals, the later one.

    With `sums`, the margin has its standard error.
    """
    names = list(quality)
    totals = np.array([quality[name] + distance[name] for name in names])
    best = len(names) - 1 - int(np.argmin(totals[::-1]))
    if len(names) == 1:
        return StageChoice(stage, first_step, names[best], quality, distance)
    second = min((index for index in range(len(names)) if index != best), key=lambda index: totals[index])
    error = None if sums is None else margin_error(sums, names[best], names[second])
    margin = float(totals[second] - totals[best])
    return StageChoice(stage, first_step, names[best], quality, distance, margin, error)


def margin_error(sums: ProbeSums, first: str, second: str) -> float | None:
    """Return the standard error of the mean difference per position of two checkpoints' sums; None of one sequence.

    Positions of one sequence are not independent, so sequences are what is sampled: the mean is a ratio of two sums
    over them, Σ difference / Σ positions, and its error is that of the residuals.
    """
    difference_S, sequences = sums.total_S[second] - sums.total_S[first], len(sums.positions_S)
    if sequences < 2:
        return None
    positions = sums.positions_S.sum()
    residual_S = difference_S - difference_S.sum() / positions * sums.positions_S
    return float(np.sqrt(sequences / (sequences - 1) * (residual_S**2).sum()) / positions)


def risk_terms(risks: dict[str, float], student_risk: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return §5.1's two terms, R(p_j) and |R(q) − R(p_j)|, for every checkpoint."""
    return dict(risks), {name: abs(student_risk - risk) for name, risk in risks.items()}


def best_checkpoint(
    checkpoints: Sequence[str],
    held_out: dict[str, float | None],
    best: str,
    metrics: dict[str, float] | None = None,
) -> str:
    """Return the best checkpoint: by lowest held-out loss, by highest metric, the last one, or the one named.

    Of equal metrics the lower held-out loss counts, of equal losses the later checkpoint; of one, that one is the best.

    Raises:
        ConfigError: there is no held-out loss or no metric to judge by, or no checkpoint of that name.
    """
    if best == "last":
        return checkpoints[-1]
    if best == "metric":
        if metrics is None or not set(checkpoints) <= metrics.keys():
            raise ConfigError('distill.best = "metric", but the checkpoints have not been judged; run `footsteps run`')
        known = {name: inf if (loss := held_out.get(name)) is None else loss for name in checkpoints}
        return max(checkpoints, key=lambda name: (metrics[name], -known[name], checkpoints.index(name)))
    if best != "held_out":
        if best not in checkpoints:
            raise ConfigError(f"distill.best {best!r} is not a checkpoint of the cache: {', '.join(checkpoints)}")
        return best
    if len(checkpoints) == 1:
        return checkpoints[0]
    losses = {name: loss for name, loss in held_out.items() if loss is not None}
    if len(losses) < len(checkpoints):
        raise ConfigError(
            'distill.best = "held_out" needs a held-out loss of every checkpoint, and the cache has none of '
            f"{', '.join(name for name in checkpoints if name not in losses)}; build the cache with validation data, "
            'or set distill.best to "last" or to a checkpoint\'s name'
        )
    return min(checkpoints, key=lambda name: (losses[name], -checkpoints.index(name)))


class Evidence(Protocol):
    """What a schedule may know at the start of a stage."""

    @property
    def checkpoints(self) -> Sequence[str]:
        """The cache's complete checkpoints, oldest first."""

    @property
    def best(self) -> str:
        """The best of them."""

    def terms(self, metric: Metric | None = None) -> tuple[dict[str, float], dict[str, float], ProbeSums | None]:
        """Measure how far every checkpoint is from the best one, and from the student as it is now; nats a position.

        By the metric, or unless given by `distill.schedule_metric`.
        """


@dataclass(frozen=True)
class Schedule:
    """One row of the table below."""

    choose: Callable[[int, int, Evidence], StageChoice]
    """From the stage, its first step and the evidence to the choice; called once per stage."""
    needs_probe: bool = False
    """Whether it compares checkpoints, so that an imported cache of one without a probe cannot serve it."""
    metric: Metric | None = None
    """What it compares them by; None where `distill.schedule_metric` says so."""


SCHEDULES = {
    "none": Schedule(lambda stage, first_step, evidence: StageChoice(stage, first_step, None)),
    "best": Schedule(lambda stage, first_step, evidence: StageChoice(stage, first_step, evidence.best)),
    "in-order": Schedule(
        lambda stage, first_step, evidence: StageChoice(stage, first_step, evidence.checkpoints[stage])
    ),
    "scheduled": Schedule(
        lambda stage, first_step, evidence: choose(stage, first_step, *evidence.terms()), needs_probe=True
    ),
    "reachable": Schedule(
        lambda stage, first_step, evidence: choose(stage, first_step, *evidence.terms("forward_kl")),
        needs_probe=True,
        metric="forward_kl",
    ),
}
"""By the name that a method's row gives."""
