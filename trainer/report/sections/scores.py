"""The report's scores: every model's metrics with their intervals, drawn and as tables (the paper's Table 1)."""

from trainer.report.parts import Figured, Section, absent, extended
from trainer.report.plots import plots
from trainer.report.plots.style import render
from trainer.report.results import LABELS, ResultTable
from trainer.report.run.records import Run
from trainer.report.tables import DataTable, Record


def scores_section(run: Run, results: ResultTable) -> Section:
    section = Section(
        "scores",
        "Scores",
        "Scores and their intervals",
        "Every model's primary metric on the test set. Where two intervals overlap widely, one run cannot tell the two "
        "models apart; the marks in the table use the sharper test that pairs the models row by row.",
        tables=[_all_metrics(run)],
    )
    if not results.tasks:
        return absent(section, "No model has been evaluated on labelled test rows.")
    plot = render("scores", lambda width: plots.scores(results, width))
    return extended(
        section,
        Figured(
            plot,
            "Dot plot of every model's score with its 95 % interval, one panel per task",
            "Dots are scores, bars are 95 % bootstrap intervals over test rows, the diamond and the dashed line are "
            "the teacher. A filled dot is the best student of its task.",
        ),
    )


def result_rows(best: ResultTable, last: ResultTable) -> DataTable:
    """Return both tables of results as one file's lines."""
    rows: list[Record] = [
        {
            "model": row.label,
            "which": which if row.kind == "method" else None,
            "seeds": len(row.seeds) or 1,
            "task": task,
            "mean": cell.mean,
            "std over seeds": cell.std,
            "low": cell.low,
            "high": cell.high,
            "rows": cell.rows,
            "unparsable": cell.unparsable,
            "ahead of teacher": cell.ahead,
            "ahead, low": cell.ahead_low,
            "ahead, high": cell.ahead_high,
            "p against teacher (Holm)": cell.p_value,
            "against teacher": cell.mark,
            "not above": cell.at_baseline,
            "best student": "yes" if cell.best else "",
            "parameters": row.parameters,
            "bytes": row.bytes,
            "tokens per second": row.tokens_per_second,
        }
        for which, table in (("best", best), ("last", last))
        for row in table.rows + table.baselines
        for task, cell in row.cells.items()
        if which == "best" or row.kind == "method"
    ]
    return DataTable("results", "Results", rows, shown=False)


def _all_metrics(run: Run) -> DataTable:
    rows: list[Record] = [
        {
            "model": LABELS.get(e.model, e.method or e.model),
            "seed": e.seed,
            "which": e.which,
            "task": task,
            "metric": name,
            "value": 100 * metric["value"],
            "low": 100 * metric.get("low", float("nan")),
            "high": 100 * metric.get("high", float("nan")),
            "rows": result.rows,
            "unparsable": result.unparsable,
        }
        for e in run.evaluations
        for task, result in e.tasks.items()
        for name, metric in result.metrics.items()
        if "value" in metric
    ]
    return DataTable("metrics", "Every metric of every model, ×100", rows)
