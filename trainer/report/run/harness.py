"""What the models of a run scored on tasks of lm-evaluation-harness.

evaluate/<model>/harness/<name>.json    tasks, their metrics, and the score of each row

A name that stands for several tasks with one metric is one task of all of their rows, as the harness weighs a group by
size.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import FiniteFloat, TypeAdapter

from trainer.evaluation.statistics import interval
from trainer.report.run.evaluations import evaluation_of
from trainer.report.run.records import Evaluation, TaskResult
from trainer.report.run.run_files import UNUSABLE, first_line, plain_name, read_json

FOLDER = "harness"
BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True)
class HarnessFile:
    """What a report takes from `<name>.json`."""

    name: str
    tasks: dict[str, TaskResult]
    scores: dict[str, dict[str, FiniteFloat]]


FILE = TypeAdapter(HarnessFile)


def read_harness(root: Path, missing: list[str]) -> list[Evaluation]:
    """Return what each model below `root` scored, in the order of their names."""
    found: dict[str, Evaluation] = {}
    for path in sorted(root.rglob(f"{FOLDER}/*.json")):
        model = plain_name(path.parent.parent.relative_to(root).as_posix())
        label = f"{model}: {FOLDER}/{plain_name(path.name)}"
        values = read_json(path, missing, label)
        if values is None:
            continue
        try:
            file = _pooled(_checked(FILE.validate_python(values)))
        except UNUSABLE as error:
            missing.append(f"{label} cannot be used: {first_line(error)}")
            continue
        before = found.get(model) or evaluation_of(model)
        found[model] = replace(before, tasks=before.tasks | file.tasks, scores=before.scores | file.scores)
    return list(found.values())


def _checked(file: HarnessFile) -> HarnessFile:
    for name, task in file.tasks.items():
        if "value" not in task.metrics.get(task.primary, {}):
            raise ValueError(f"there is no {name}.metrics.{task.primary}.value")
    return file


def _pooled(file: HarnessFile) -> HarnessFile:
    """Return the file with one task for all, where they have one metric and their rows have scores."""
    kinds = {(task.primary, task.higher_is_better) for task in file.tasks.values()}
    if len(file.tasks) < 2 or len(kinds) > 1 or not all(file.scores.get(task) for task in file.tasks):
        return file
    ((primary, higher_is_better),) = kinds
    scores = {f"{task}/{row}": score for task, rows in file.scores.items() for row, score in rows.items()}
    of_rows = np.array(list(scores.values()))
    low, high = interval(lambda rows: float(of_rows[rows].mean()), len(of_rows), BOOTSTRAP_SAMPLES)
    metrics = {primary: {"value": float(of_rows.mean()), "low": low, "high": high}}
    task = TaskResult(len(of_rows), primary, metrics, higher_is_better=higher_is_better)
    return HarnessFile(file.name, {file.name: task}, {file.name: scores})
