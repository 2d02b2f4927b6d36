"""The part of a report that spans runs: their scores side by side, and the same methods compared test row by test row.

    (Run, RunReport) of each run ─▶ figure, runs.csv, runs_paired.csv

Runs are paired only where their settings name the same data and tasks and they judged the same test rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.parts import Figured, RunReport, size
from trainer.report.plots import runs as plots_runs
from trainer.report.plots.runs import Point
from trainer.report.plots.style import render
from trainer.report.results import Difference, difference, evaluations_of, holm, mean_scores
from trainer.report.run.records import Run
from trainer.report.run.settings import setting
from trainer.report.tables import DataTable, Record

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class RunsPart:
    """What stands above the runs' own reports."""

    figures: list[Figured]
    tables: list[DataTable]
    notes: list[str]


def runs_part(runs: Sequence[Run], reports: Sequence[RunReport]) -> RunsPart:
    """Build the part; runs and reports are in the same order."""
    figures = []
    panels = _panels(reports)
    names = {report.name: _legend(run, report) for run, report in zip(runs, reports, strict=True)}
    if panels:
        labelled = {label: {names[name]: models for name, models in found.items()} for label, found in panels.items()}
        figures.append(
            Figured(
                render("runs", lambda width: plots_runs.runs(labelled, list(names.values()), width)),
                "Dot plot of every model's score in every run, one panel per task",
                "Each model's score in each run, with its 95 % interval over test rows; a thin line joins the same "
                "method's runs. A task of the same name and metric shares a panel, so look whether the data are the "
                "same too. The mean is drawn where all runs have all tasks.",
            )
        )
    return RunsPart(figures, [runs_table(reports), _paired_table(runs, reports)], _notes(runs, reports))


def runs_table(reports: Sequence[RunReport]) -> DataTable:
    """Return every model of every run on every task, a line each, for comparisons that span runs."""
    rows: list[Record] = [
        {
            "run": report.name,
            "model": row.label,
            "seeds": len(row.seeds) or 1,
            "task": task,
            "metric": report.results.tasks[task],
            "mean": cell.mean,
            "std over seeds": cell.std,
            "low": cell.low,
            "high": cell.high,
            "rows": cell.rows,
            "against teacher": cell.mark,
            "parameters": row.parameters,
            "bytes": row.bytes,
            "tokens per second": row.tokens_per_second,
        }
        for report in reports
        for row in report.results.rows
        for task, cell in row.cells.items()
    ]
    return DataTable("runs", "The runs side by side", rows, shown=False)


def _panels(reports: Sequence[RunReport]) -> dict[str, dict[str, dict[str, Point]]]:
    """Axis label -> run -> model -> point; a panel per task and metric, and the mean where runs share all tasks."""
    panels: dict[str, dict[str, dict[str, Point]]] = {}
    for report in reports:
        for task, metric in report.results.tasks.items():
            found = panels.setdefault(f"{task}: {metric}, ×100", {}).setdefault(report.name, {})
            for row in report.results.rows:
                if task in row.cells:
                    cell = row.cells[task]
                    found[row.label] = Point(cell.mean, cell.low, cell.high)
    if len(panels) > 1 and len({tuple(sorted(report.results.tasks.items())) for report in reports}) == 1:
        panels["mean over tasks, ×100"] = {
            report.name: {row.label: Point(row.average) for row in report.results.rows if row.average is not None}
            for report in reports
        }
    return {label: found for label, found in panels.items() if any(found.values())}


def _legend(run: Run, report: RunReport) -> str:
    """Name a run with what tells runs apart: its student's size and its teacher's."""
    sizes = {row.kind: size(row.parameters, "B") for row in reversed(report.results.rows) if row.parameters}
    student = sizes.get("student") or sizes.get("method")
    parts = [f"{student} student" if student else "", f"{sizes['teacher']} teacher" if "teacher" in sizes else ""]
    told = ", ".join(part for part in parts if part)
    return f"{report.name} ({told})" if told else report.name


def _paired_table(runs: Sequence[Run], reports: Sequence[RunReport]) -> DataTable:
    """Compare every later run with the first: the same model on the same test rows, corrected per run and task."""
    rows: list[Record] = []
    base, base_report = runs[0], reports[0]
    for run, report in zip(runs[1:], reports[1:], strict=True):
        if not _same_data(base, run):
            continue
        for task, metric in report.results.tasks.items():
            if base_report.results.tasks.get(task) != metric:
                continue
            found = {
                label: compared
                for label in [row.label for row in report.results.rows]
                if (compared := _compared(run, base, label, task)) is not None
            }
            corrected = holm([compared.p_value for compared in found.values()])
            for (label, compared), p_value in zip(found.items(), corrected, strict=True):
                verdict = ("ahead" if compared.ahead > 0 else "behind") if p_value < SIGNIFICANCE else ""
                rows.append(
                    {
                        "run": report.name,
                        "model": label,
                        "task": task,
                        "rows": compared.rows,
                        f"ahead of {base_report.name}, ×100": 100 * compared.ahead,
                        "low": 100 * compared.low,
                        "high": 100 * compared.high,
                        "p (Holm)": p_value,
                        "verdict": verdict,
                    }
                )
    title = f"Each run against {base_report.name}, paired by test row"
    return DataTable("runs_paired", title, rows)


def _compared(run: Run, base: Run, label: str, task: str) -> Difference | None:
    """Compare a model of two runs, where all of its seeds have the same rows in both."""
    ours, theirs = (evaluations_of(each, label) for each in (run, base))
    rows = [set(mean_scores(each, task)) for each in (ours, theirs)]
    return difference(ours, theirs, task) if rows[0] == rows[1] else None


def _same_data(one: Run, other: Run) -> bool:
    """Say whether the settings of two runs name the same data and tasks, so that equal row ids mean equal rows."""
    data = one.config.get("data")
    told = isinstance(data, dict) and bool(data) and data == other.config.get("data")
    seeds = [setting(run.config, "run", "seed") for run in (one, other)]
    return told and one.config.get("tasks") == other.config.get("tasks") and seeds[0] == seeds[1]


def _notes(runs: Sequence[Run], reports: Sequence[RunReport]) -> list[str]:
    notes = []
    tasks = [set(report.results.tasks.items()) for report in reports]
    shared, known = set.intersection(*tasks), set.union(*tasks)
    if known and not shared:
        notes.append("The runs share no task with the same metric: no score of one can be compared with another's.")
    elif known != shared:
        apart = ", ".join(f"{task} ({metric})" for task, metric in sorted(known - shared))
        notes.append(f"Not all runs have {apart}: means over tasks cannot be compared between all of them.")
    unpaired = [report.name for run, report in zip(runs[1:], reports[1:], strict=True) if not _same_data(runs[0], run)]
    if unpaired:
        notes.append(
            f"Not compared with {reports[0].name} row by row, because their settings do not name the same data, tasks "
            f"and seed: {', '.join(unpaired)}."
        )
    notes.extend(
        f"{report.name}: {len(report.missing)} {'thing is' if len(report.missing) == 1 else 'things are'} missing, "
        "listed under its name."
        for report in reports
        if report.missing
    )
    return notes
