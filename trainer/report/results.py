"""From a run's evaluations to the table of models × tasks: mean ± std over seeds, intervals, best, significance.

    cell = mean over seeds of the task's primary metric
           ± std over seeds                   from two seeds on
           [low, high]                        95 % interval over test rows, its ends averaged over seeds
           ▲ / ▼                              above / below the teacher, p < 0.05 after Holm's correction per task

The test is a bootstrap paired by test row: the mean over seeds of a score, minus the teacher's, on resampled rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trainer.evaluation.statistics import mean_and_std, paired_bootstrap
from trainer.report.run.records import BASE, STUDENT_SFT, TEACHER, TEACHER_BASE, Evaluation, Run

BOOTSTRAP_SAMPLES = 4000
SIGNIFICANCE = 0.05
BASELINES = {"majority": "majority class", "empty": "always empty", "prompt": "prompt copied"}
LABELS = {TEACHER: "teacher SFT", TEACHER_BASE: "teacher base", BASE: "student base", STUDENT_SFT: "student SFT"}
KINDS = {TEACHER: "teacher", TEACHER_BASE: "base", BASE: "base", STUDENT_SFT: "student"}
REFERENCES = ("teacher", "base")
"""Kinds that are no students: never the best, nor tested against the teacher, as each test costs the others power."""


@dataclass(frozen=True)
class Cell:
    """One model on one task; scores are fractions, `p_value` is corrected, `mark` is "", "above" or "below"."""

    mean: float
    std: float | None
    low: float
    high: float
    rows: int
    unparsable: int
    best: bool = False
    ahead: float | None = None
    """Mean of the row scores minus the teacher's, with its 95 % interval."""
    ahead_low: float | None = None
    ahead_high: float | None = None
    p_value: float | None = None
    mark: str = ""
    at_baseline: str = ""
    """The baselines that the model, with one of its seeds at least, is not clearly above."""


@dataclass(frozen=True)
class ResultRow:
    """One line: the teacher, a base model, the student SFT model, one method over all of its seeds, or a baseline."""

    label: str
    kind: str
    seeds: tuple[int, ...]
    parameters: int | None
    bytes: int | None
    tokens_per_second: float | None
    cells: dict[str, Cell]
    average: float | None = None
    best_average: bool = False


@dataclass(frozen=True)
class ResultTable:
    """`tasks` maps a task to its primary metric; `rows` starts with the teacher, base models and the student SFT."""

    tasks: dict[str, str]
    rows: list[ResultRow] = field(default_factory=list)
    baselines: list[ResultRow] = field(default_factory=list)
    """What models that have learned nothing would score; older runs have none."""


def result_table(run: Run, which: str = "best") -> ResultTable:
    """Summarise a run's evaluations; of each distilled student the checkpoint `which`, else the other one."""
    groups: list[tuple[str, str, list[Evaluation]]] = []
    for model, label in LABELS.items():
        evaluation = run.evaluation(model)
        if evaluation:
            groups.append((label, KINDS[model], [evaluation]))
    groups.extend((method, "method", _of_method(run, method, which)) for method in run.methods())
    groups = [group for group in groups if group[2]]
    tasks = {
        task: result.primary
        for _, _, evaluations in groups
        for evaluation in evaluations
        for task, result in evaluation.tasks.items()
        if result.rows
    }
    rows = [
        ResultRow(
            label=label,
            kind=kind,
            seeds=tuple(sorted(e.seed for e in evaluations if e.seed is not None)),
            parameters=evaluations[0].parameters,
            bytes=evaluations[0].bytes,
            tokens_per_second=_mean([e.tokens_per_second for e in evaluations]),
            cells={task: cell for task in tasks if (cell := _cell(evaluations, task))},
        )
        for label, kind, evaluations in groups
    ]
    rows = _with_significance(rows, groups, tasks)
    rows = [replace(row, average=_average(row, tasks)) for row in rows]
    evaluations = [evaluation for _, _, group in groups for evaluation in group]
    return ResultTable(tasks, _with_best(rows, tasks), _baseline_rows(evaluations, tasks))


def _baseline_rows(evaluations: Sequence[Evaluation], tasks: dict[str, str]) -> list[ResultRow]:
    """Return a row for each baseline; all models of a run are judged on the same rows, so any one's will do."""
    found: dict[str, dict[str, Cell]] = {}
    for evaluation in evaluations:
        for task in tasks:
            result = evaluation.tasks.get(task)
            for name, baseline in (result.baselines if result else {}).items():
                metric = baseline.metrics.get(tasks[task], {})
                if result and "value" in metric and task not in found.setdefault(name, {}):
                    low, high = (metric.get(end, float("nan")) for end in ("low", "high"))
                    found[name][task] = Cell(metric["value"], None, low, high, result.rows, 0)
    rows = [
        ResultRow(BASELINES.get(name, name), "baseline", (), None, None, None, cells) for name, cells in found.items()
    ]
    return [replace(row, average=_average(row, tasks)) for row in rows if row.cells]


@dataclass(frozen=True)
class Difference:
    """How far one group of models is ahead of another on the rows that all have."""

    rows: int
    ahead: float
    low: float
    high: float
    p_value: float


def difference(ours: Sequence[Evaluation], theirs: Sequence[Evaluation], task: str) -> Difference | None:
    """Compare two groups' mean scores on a task, with a 95 % interval and a two-sided p-value.

    Where rows count by their entities, the scores are F1 over all of them, and both of its sums are resampled together.
    """
    both = [*ours, *theirs]
    ids = sorted(set.intersection(*(set(e.scores.get(task, {})) for e in both))) if ours and theirs else []
    if not ids:
        return None
    score, weight = (
        np.array([[rows.get(i, 1.0) for i in ids] for rows in tables])
        for tables in ([e.scores[task] for e in both], [e.weights.get(task, {}) for e in both])
    )
    split = len(ours)
    weights = None if (weight == 1).all() else (weight[:split], weight[split:])
    return Difference(len(ids), *paired_bootstrap(score[:split], score[split:], BOOTSTRAP_SAMPLES, weights=weights))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down corrected p-values, in the given order."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def mean_scores(evaluations: Sequence[Evaluation], task: str) -> dict[str, float]:
    """Average each row's score over the evaluations that have all the rows in common."""
    tables = [e.scores.get(task, {}) for e in evaluations]
    shared = set.intersection(*(set(table) for table in tables)) if tables else set()
    return {i: float(np.mean([table[i] for table in tables])) for i in sorted(shared)}


def evaluations_of(run: Run, label: str) -> list[Evaluation]:
    """Return the evaluations behind a row of the table."""
    model = next((model for model, shown in LABELS.items() if shown == label), None)
    if model:
        evaluation = run.evaluation(model)
        return [evaluation] if evaluation else []
    return _of_method(run, label, "best")


def _of_method(run: Run, method: str, which: str) -> list[Evaluation]:
    by_seed: dict[int | None, Evaluation] = {}
    for evaluation in run.evaluations:
        if evaluation.method == method and (evaluation.which == which or evaluation.seed not in by_seed):
            by_seed[evaluation.seed] = evaluation
    return list(by_seed.values())


def _cell(evaluations: Sequence[Evaluation], task: str) -> Cell | None:
    results = [e.tasks[task] for e in evaluations if task in e.tasks and e.tasks[task].rows]
    if not results:
        return None
    mean, std = mean_and_std([result.value for result in results])
    return Cell(
        mean=mean,
        std=std,
        low=float(np.mean([result.low for result in results])),
        high=float(np.mean([result.high for result in results])),
        rows=results[0].rows,
        unparsable=round(float(np.mean([result.unparsable for result in results]))),
        at_baseline=", ".join(dict.fromkeys(BASELINES.get(name, name) for each in results for name in each.not_above)),
    )


def _with_significance(
    rows: list[ResultRow], groups: list[tuple[str, str, list[Evaluation]]], tasks: dict[str, str]
) -> list[ResultRow]:
    teacher = next((evaluations[0] for _, kind, evaluations in groups if kind == "teacher"), None)
    if teacher is None:
        return rows
    for task in tasks:
        tested: dict[int, Difference] = {}
        for index, (_, kind, evaluations) in enumerate(groups):
            if kind not in REFERENCES and task in rows[index].cells:
                found = difference(evaluations, [teacher], task)
                if found is not None:
                    tested[index] = found
        corrected = holm([found.p_value for found in tested.values()])
        for (index, found), p_value in zip(tested.items(), corrected, strict=True):
            mark = ("above" if found.ahead > 0 else "below") if p_value < SIGNIFICANCE else ""
            rows[index].cells[task] = replace(
                rows[index].cells[task],
                ahead=found.ahead,
                ahead_low=found.low,
                ahead_high=found.high,
                p_value=p_value,
                mark=mark,
            )
    return rows


def _with_best(rows: list[ResultRow], tasks: dict[str, str]) -> list[ResultRow]:
    """Mark the best student per column, ties included; the teacher is the reference and never marked."""
    students = [row for row in rows if row.kind not in REFERENCES]
    for task in tasks:
        top = max((row.cells[task].mean for row in students if task in row.cells), default=None)
        for row in students:
            if task in row.cells and row.cells[task].mean == top:
                row.cells[task] = replace(row.cells[task], best=True)
    top = max((row.average for row in students if row.average is not None), default=None)
    return [
        replace(row, best_average=row.kind not in REFERENCES and row.average is not None and row.average == top)
        for row in rows
    ]


def _average(row: ResultRow, tasks: dict[str, str]) -> float | None:
    """Return the mean over tasks, or None where a task is missing: a mean over fewer could not be compared."""
    return (
        float(np.mean([row.cells[task].mean for task in tasks]))
        if tasks and all(t in row.cells for t in tasks)
        else None
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
