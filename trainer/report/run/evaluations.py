"""What the models of a run scored.

evaluate/teacher/  evaluate/student_sft/  evaluate/<method>/seed-<s>/<best|last>/
    metrics.json         tasks, their metrics and intervals, size and speed
    predictions.jsonl    a score for each row, for tests paired by row
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt, TypeAdapter

from trainer.report.run.records import Evaluation, TaskResult
from trainer.report.run.run_files import UNUSABLE, first_line, plain_name, read_json, read_scores


@dataclass(frozen=True)
class MetricsFile:
    """What a report takes from a `metrics.json`."""

    tasks: dict[str, TaskResult]
    parameters: NonNegativeInt | None = None
    tokens_per_second: NonNegativeFloat | None = None
    bytes: NonNegativeInt | None = None
    seconds: NonNegativeFloat | None = None


METRICS = TypeAdapter(MetricsFile)


def read_evaluations(root: Path, missing: list[str]) -> list[Evaluation]:
    """Return every evaluation below `root`, in the order of their names."""
    found = [read_evaluation(path, root, missing) for path in sorted(root.rglob("metrics.json"))]
    return [evaluation for evaluation in found if evaluation]


def read_evaluation(path: Path, root: Path, missing: list[str]) -> Evaluation | None:
    """Return one model's scores, or None."""
    model = plain_name(path.parent.relative_to(root).as_posix())
    values = read_json(path, missing, f"evaluation {model}")
    if values is None:
        return None
    try:
        found = METRICS.validate_python(values)
        for name, task in found.tasks.items():
            if task.rows and "value" not in task.metrics.get(task.primary, {}):
                raise ValueError(f"there is no {name}.metrics.{task.primary}.value")
    except UNUSABLE as error:
        missing.append(f"evaluate/{model}/{path.name} cannot be used: {first_line(error)}")
        return None
    rows = read_scores(path.parent / "predictions.jsonl", missing)
    return replace(
        evaluation_of(model),
        parameters=found.parameters,
        tokens_per_second=found.tokens_per_second,
        tasks=found.tasks,
        scores=rows.score,
        weights=rows.weight,
        bytes=found.bytes,
        seconds=found.seconds,
    )


def evaluation_of(model: str) -> Evaluation:
    """Return a model's evaluation, in which nothing is known yet but what the name of its folder says."""
    match = re.fullmatch(r"([^/]+)/seed-([0-9]{1,9})/([^/]+)", model)
    return Evaluation(
        model=model,
        method=match[1] if match else None,
        seed=int(match[2]) if match else None,
        which=match[3] if match else None,
        parameters=None,
        tokens_per_second=None,
        tasks={},
        scores={},
    )
