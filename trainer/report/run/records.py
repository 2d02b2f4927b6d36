"""A run folder as plain records: what was trained, what it scored, what it took, and what is missing.

Run ─┬─ cache: CacheView        losses, distances and bytes of the checkpoints
     ├─ distilled: Distilled    a method with a seed: plan, log, losses
     ├─ evaluations: Evaluation ─ tasks: TaskResult ─ metrics
     └─ missing                 sentences on what is absent or unreadable
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeInt

from trainer.methods.schedules import StageChoice
from trainer.report.run.cache_view import CacheView
from trainer.report.run.run_costs import CheckpointCost, LiveTeacher
from trainer.report.run.settings import settings

SELECTED_BY = {"loss": "the lowest loss", "metric": "the highest mean of the primary metrics of its tasks"}
BASE = "base"
TEACHER_BASE = "teacher_base"
"""The student before training, where it was evaluated."""
TEACHER = "teacher"
STUDENT_SFT = "student_sft"


@dataclass(frozen=True)
class Baseline:
    """A baseline's metrics, and how far the model is ahead of it on the primary one: value, low and high."""

    metrics: dict[str, dict[str, float]]
    ahead: dict[str, float]


@dataclass(frozen=True)
class TaskResult:
    """What one model scored on one task; `metrics` maps a metric's name to value, low and high (a 95 % interval)."""

    rows: NonNegativeInt
    primary: str
    metrics: dict[str, dict[str, float]]
    unparsable: NonNegativeInt = 0
    baselines: dict[str, Baseline] = field(default_factory=dict)
    """What a model that has learned nothing would score, by the baseline's name; none in older runs."""
    higher_is_better: bool = True

    @property
    def not_above(self) -> list[str]:
        """The baselines that the model is not ahead of by more than its interval allows."""
        return [name for name, baseline in self.baselines.items() if not baseline.ahead.get("low", 1.0) > 0]

    @property
    def value(self) -> float:
        return self.metrics[self.primary]["value"]

    @property
    def low(self) -> float:
        return self.metrics[self.primary].get("low", float("nan"))

    @property
    def high(self) -> float:
        return self.metrics[self.primary].get("high", float("nan"))


@dataclass(frozen=True)
class Evaluation:
    """One `metrics.json`: `method` is None for the teacher and the student SFT model, `which` is best or last."""

    model: str
    method: str | None
    seed: int | None
    which: str | None
    parameters: int | None
    tokens_per_second: float | None
    tasks: dict[str, TaskResult]
    scores: dict[str, dict[str, float]]
    """Task -> row id -> the row's score, for tests paired by row."""
    bytes: int | None = None
    """Of the parameters, as they were loaded."""
    seconds: float | None = None
    """What answering the test examples took."""
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> row id -> how much the row counts; 1 where it is not named."""


@dataclass(frozen=True)
class Distilled:
    """One method with one seed, as far as it got; `losses` are those of the finished student on the training set."""

    method: str
    seed: int
    folder: Path
    metric: str
    """What its schedule compared checkpoints by, `kl` or `risk`."""
    stages: list[StageChoice]
    log: list[dict[str, Any]]
    losses: np.ndarray | None
    best: str | None = None
    """The checkpoint that its plan calls the best: the final teacher."""
    selected_by: str | None = None
    """What chose the student in best/ on validation data, a key of SELECTED_BY; None where nothing was held out."""


@dataclass(frozen=True)
class AwLosses:
    """The losses that adaptive weighting compared, where they are others than the student SFT's and the cache's."""

    student_N: np.ndarray
    teacher: dict[str, np.ndarray]
    """By checkpoint; empty where the teacher could not be trained on halves, and the cache's losses were taken."""


@dataclass(frozen=True)
class Run:
    folder: Path
    config: dict[str, Any]
    teacher_steps: dict[str, int]
    """Checkpoint -> optimizer step of the teacher's fine-tuning."""
    cache: CacheView | None
    student_losses: np.ndarray | None
    distilled: list[Distilled]
    evaluations: list[Evaluation]
    corpus_counts: dict[str, int]
    missing: list[str] = field(default_factory=list)
    sft_logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """`teacher` and `student_sft` -> the log of its fine-tuning, where there is one."""
    best: str | None = None
    """The checkpoint that stands for the teacher: the one that was evaluated, and that `td` learns from."""
    aw_losses: AwLosses | None = None
    build_costs: dict[str, CheckpointCost] = field(default_factory=dict)
    """Checkpoint -> what building its part of the cache took, as far as its builders left notes here."""
    live_teachers: list[LiveTeacher] = field(default_factory=list)
    elsewhere: list[Evaluation] = field(default_factory=list)
    """What the models scored on tasks of lm-evaluation-harness, none of which they were trained for."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def evaluation(self, model: str) -> Evaluation | None:
        """Return the evaluation of `teacher`, `student_sft` or `<method>/seed-<s>/<which>`."""
        return next((e for e in self.evaluations if e.model == model), None)

    def selections(self) -> str:
        """Say by what, on validation data, the students in best/ were chosen."""
        found = dict.fromkeys(SELECTED_BY[d.selected_by] for d in self.distilled if d.selected_by)
        return " or ".join(found)

    def methods(self) -> list[str]:
        """Name every method that was distilled or evaluated, in the config's order, then by name."""
        found = {d.method for d in self.distilled} | {e.method for e in self.evaluations if e.method}
        wanted = [m for m in wanted_methods(self.config) if m in found]
        return wanted + sorted(found - set(wanted))


def wanted_methods(config: dict[str, Any]) -> list[str]:
    """Return the methods that the settings ask for."""
    return [str(method) for method in settings(config, "distill", "methods")]
