"""What a grid leaves behind: a line for each cell, a table, a CSV, a plot, and the best config.

Losses are those of the held-out data, nats per position.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

from cache_builder.config import save_experiment
from trainer.report.plots.style import is_narrow, plain, render, series_style
from trainer.report.tables import DataTable, Record, write_csv
from trainer.tuning.grid import SECTIONS
from trainer.tuning.race import still_falling
from trainer.tuning.tune import Grid, Result, best_of


def line_of(result: Result) -> str:
    """Say in a line what became of a cell."""
    values = ", ".join(f"{field} {_shown(value)}" for field, value in result.cell.values.items()) or "as the config is"
    if result.diverged:
        return f"{values}: diverged, its loss was no number"
    metric = "" if result.best_metric is None else f", metric {result.best_metric:.4f}"
    share = result.history.shares()[-1]
    ended = f"stopped at {share:.0%} of its steps" if result.stopped else f"{result.history.total_steps:,} steps"
    return f"{values}: held-out loss {result.best_loss:.4f}{metric}; {ended}"


def facts_of(result: Result) -> dict[str, Any]:
    """Return what became of a cell, for machines; a loss that is no number is None."""
    return {
        "values": dict(result.cell.values),
        "held_out_loss": result.best_loss if math.isfinite(result.best_loss) else None,
        "metric": result.best_metric,
        "step": result.best_step,
        "steps": result.history.total_steps,
        "stopped": result.stopped,
        "diverged": result.diverged,
    }


def records_of(results: Sequence[Result]) -> list[Record]:
    """Return the table's rows, the best first and those that were stopped or diverged last."""
    best = best_of(results)
    judged_by_metric = any(result.best_metric is not None for result in results)
    ordered = sorted(results, key=lambda one: (one.diverged, one.stopped, *(-each for each in one.score)))
    return [
        {
            **{field: _shown(value) for field, value in result.cell.values.items()},
            "held-out loss": None if result.diverged else result.best_loss,
            **({"metric": result.best_metric} if judged_by_metric else {}),
            "best step": result.best_step,
            "steps": result.history.total_steps,
            "seconds": result.seconds,
            "note": "; ".join(_notes(result, best)),
        }
        for result in ordered
    ]


def table_of(records: Sequence[Record], title: str) -> Table:
    """Return the rows for a terminal."""
    table = Table(*records[0], box=SIMPLE, title=title)
    for record in records:
        table.add_row(*("" if value is None else _number(value) for value in record.values()))
    return table


def write_grid(grid: Grid, results: Sequence[Result]) -> list[Path]:
    """Write grid.csv, grid.png and best.toml, and return their paths.

    Raises:
        TrainingError: no cell is the best.
    """
    best = best_of(results)
    paths = [grid.folder / name for name in ("grid.csv", "grid.png", "best.toml")]
    write_csv(paths[0], DataTable("grid", "The grid", records_of(results)))
    paths[1].write_bytes(render("grid", lambda width: _draw(results, SECTIONS[grid.part], width)).png)
    save_experiment(best.cell.experiment.model_copy(update={"run": grid.experiment.run}), paths[2])
    return paths


def cautions(results: Sequence[Result]) -> list[str]:
    """Say what speaks for a wider grid: a best value at an edge, or a best cell whose loss was still falling."""
    best, said = best_of(results), []
    for field, value in best.cell.values.items():
        tried = sorted({result.cell.values[field] for result in results if _is_number(result.cell.values[field])})
        if len(tried) > 1 and value in (tried[0], tried[-1]):
            where = "smallest" if value == tried[0] else "largest"
            said.append(f"the best {field}, {_shown(value)}, is the {where} of the grid: a wider one may have a better")
    if still_falling(best.history):
        said.append("the best cell's held-out loss was still falling at its end: more epochs may be better")
    return said


def _notes(result: Result, best: Result) -> list[str]:
    if result.diverged:
        return ["diverged"]
    notes = ["best"] if result is best else []
    notes += [f"stopped at {result.history.shares()[-1]:.0%}"] if result.stopped else []
    return notes + (["still falling"] if not result.stopped and still_falling(result.history) else [])


def _draw(results: Sequence[Result], section: str, width: float) -> Figure:
    """Draw the best held-out loss over the first field's values; a line for every combination of the others."""
    figure = Figure(figsize=(width, 3.4), layout="constrained")
    axes = figure.subplots()
    fields = list(results[0].cell.values)
    first = fields[0] if fields else ""
    values = list(dict.fromkeys(_shown(result.cell.values.get(first)) for result in _sorted(results, first)))
    lines: dict[str, list[Result]] = {}
    for result in _sorted(results, first):
        name = ", ".join(f"{field} {_shown(value)}" for field, value in result.cell.values.items() if field != first)
        lines.setdefault(name, []).append(result)
    for index, (name, cells) in enumerate(lines.items()):
        line = [result for result in cells if not result.diverged]
        x = [values.index(_shown(result.cell.values.get(first))) for result in line]
        style = series_style(index)
        axes.plot(x, [result.best_loss for result in line], label=plain(name), **style)  # type: ignore[arg-type]
        stopped = [(place, result.best_loss) for place, result in zip(x, line, strict=True) if result.stopped]
        if stopped:
            axes.plot(*zip(*stopped, strict=True), "o", fillstyle="none", markersize=10, color=style["color"])
    axes.set_xticks(range(len(values)), [plain(value) for value in values])
    axes.set_xlabel(f"{plain(f'{section}.{first}')} (a ring: stopped early)")
    axes.set_ylabel("best held-out loss, nats")
    if len(lines) > 1:
        axes.legend(fontsize="small", ncols=1 if is_narrow(width) else 2)
    return figure


def _sorted(results: Sequence[Result], field: str) -> list[Result]:
    """Return the results by a field's value where that is a number, else in their order."""
    if all(_is_number(result.cell.values.get(field)) for result in results):
        return sorted(results, key=lambda result: result.cell.values[field])
    return list(results)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
