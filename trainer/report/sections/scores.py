"""The report's scores: every model's metrics with their intervals, drawn and as tables (the paper's Table 1)."""

from trainer.report.parts import DataTable, Figured, Section, absent, extended
from trainer.report.plots import plots
from trainer.report.plots.style import render
from trainer.report.results import LABELS, ResultTable
from trainer.report.run.run_reader import Run


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
    rows: list[list[object]] = []
    for which, table in (("best", best), ("last", last)):
        for row in table.rows:
            rows.extend(
                [
                    row.label,
                    which if row.kind == "method" else None,
                    len(row.seeds) or 1,
                    task,
                    cell.mean,
                    cell.std,
                    cell.low,
                    cell.high,
                    cell.rows,
                    cell.unparsable,
                    cell.ahead,
                    cell.ahead_low,
                    cell.ahead_high,
                    cell.p_value,
                    cell.mark,
                    "yes" if cell.best else "",
                    row.parameters,
                    row.bytes,
                    row.tokens_per_second,
                ]
                for task, cell in row.cells.items()
                if which == "best" or row.kind == "method"
            )
    return DataTable(
        "results",
        "Results",
        [
            "model",
            "which",
            "seeds",
            "task",
            "mean",
            "std over seeds",
            "low",
            "high",
            "rows",
            "unparsable",
            "ahead of teacher",
            "ahead, low",
            "ahead, high",
            "p against teacher (Holm)",
            "against teacher",
            "best student",
            "parameters",
            "bytes",
            "tokens per second",
        ],
        rows,
        shown=False,
    )


def _all_metrics(run: Run) -> DataTable:
    rows: list[list[object]] = [
        [
            LABELS.get(e.model, e.method),
            e.seed,
            e.which,
            task,
            name,
            100 * metric["value"],
            100 * metric.get("low", float("nan")),
            100 * metric.get("high", float("nan")),
            result.rows,
            result.unparsable,
        ]
        for e in run.evaluations
        for task, result in e.tasks.items()
        for name, metric in result.metrics.items()
        if "value" in metric
    ]
    return DataTable(
        "metrics",
        "Every metric of every model, ×100",
        ["model", "seed", "which", "task", "metric", "value", "low", "high", "rows", "unparsable"],
        rows,
    )
