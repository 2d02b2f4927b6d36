"""What training gained a student on its own tasks, and what it lost on others: each against the same student before.

    gained = mean over seeds of a score − the base's, turned so that more is better
             [low, high]     95 % interval, paired by row
             gained / lost   p < 0.05 after Holm's correction over the students of a task

A metric that is no mean over rows has no interval, and nothing is said of its chance.
"""

from dataclasses import dataclass, replace

import numpy as np

from trainer.report.results import LABELS, SIGNIFICANCE, difference, evaluations_of, holm
from trainer.report.run.records import BASE, STUDENT_SFT, TEACHER, Evaluation, Run


@dataclass(frozen=True)
class Change:
    """One student on one task, over all of its seeds; scores as their metric has them."""

    label: str
    task: str
    own: bool
    """Whether the student was trained for the task."""
    metric: str
    seeds: int
    base: float
    score: float
    teacher: float | None
    gained: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    """Corrected."""

    @property
    def verdict(self) -> str:
        """What can be said of it: "gained", "lost" or nothing."""
        if self.p_value is None or self.p_value >= SIGNIFICANCE:
            return ""
        return "gained" if self.gained > 0 else "lost"


def changes(run: Run) -> list[Change]:
    """Return every student's changes, task by task, those of its own first; none where the base was not evaluated."""
    return [
        change
        for own, evaluations in ((True, run.evaluations), (False, run.elsewhere))
        for change in _changes(replace(run, evaluations=evaluations), own)
    ]


def _changes(run: Run, own: bool) -> list[Change]:
    base = run.evaluation(BASE)
    labels = [LABELS[STUDENT_SFT], *dict.fromkeys(e.method for e in run.evaluations if e.method)]
    order = [*(label for label in labels[:1]), *sorted(labels[1:], key=run.methods().index)]
    found: list[Change] = []
    for task in base.tasks if base else ():
        assert base is not None
        of_task = [
            change
            for label in order
            if (students := [e for e in evaluations_of(run, label) if task in e.tasks])
            if (change := _change(label, students, base, run.evaluation(TEACHER), task, own)) is not None
        ]
        tested = [change for change in of_task if change.p_value is not None]
        corrected = iter(holm([change.p_value for change in tested if change.p_value is not None]))
        found += [replace(each, p_value=None if each.p_value is None else next(corrected)) for each in of_task]
    return found


def _change(
    label: str, students: list[Evaluation], base: Evaluation, teacher: Evaluation | None, task: str, own: bool
) -> Change | None:
    before = base.tasks[task]
    if not before.rows or any(e.tasks[task].primary != before.primary for e in students):
        return None
    sign = 1.0 if before.higher_is_better else -1.0
    score = float(np.mean([e.tasks[task].value for e in students]))
    change = Change(
        label=label,
        task=task,
        own=own,
        metric=before.primary,
        seeds=len(students),
        base=before.value,
        score=score,
        teacher=teacher.tasks[task].value if teacher and task in teacher.tasks else None,
        gained=sign * (score - before.value),
    )
    paired = difference(students, [base], task)
    if paired is None:
        return change
    low, high = sorted((sign * paired.low, sign * paired.high))
    return replace(change, low=low, high=high, p_value=paired.p_value)
