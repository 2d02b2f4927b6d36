"""What `footsteps toy` leaves behind: a CSV line per seed, the decision regions, the spread over seeds, one page.

<output_dir>/toy.csv   one line per reading and seed      toy-regions.png   toy-accuracy.png   index.html
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

from trainer.report.page import write_page
from trainer.report.parts import Figured
from trainer.report.plots.style import INK, MUTED, PAPER, STUDENT, TEACHER, grid_of, is_narrow, render
from trainer.report.tables import DataTable, Record, write_csv
from trainer.toy.toy import MODELS, READINGS, ToyResult, train_toy

NAMES = {
    "teacher": "teacher",
    "sft": "SFT",
    "distill": "distill only",
    "td": "TD",
    "hard-aw": "hard AW",
    "aw": "soft AW",
}


def run_toy(output_dir: Path, seeds: int = 40, examples: int = 500, steps: int = 2000) -> ToyResult:
    """Train the toy and write its page, figures and CSV into `output_dir`.

    Raises:
        ConfigError: a count is below one.
    """
    result = train_toy(seeds, examples, steps)
    output_dir.mkdir(parents=True, exist_ok=True)
    lines = per_seed(result)
    write_csv(output_dir / "toy.csv", lines)
    figures = [
        Figured(
            render("toy-regions", lambda width: draw_regions(result, width)),
            "Decision regions of the teacher and of every student, in both readings",
            "Seed 0. The line is the true boundary, tints are what a model decides, dots are its training points. The "
            "teacher was stopped while its boundary was nearly straight: distillation alone copies that, TD "
            "halfway, and adaptive weighting hardly at all.",
        ),
        Figured(
            render("toy-accuracy", lambda width: draw_accuracies(result, width)),
            "Accuracy of every model over all seeds, in both readings",
            f"Every dot is one of {seeds} seeds, paired: data, noise and initialisation are the same for all models of "
            "a seed. The bar is the mean ± one standard deviation.",
        ),
    ]
    for figure in figures:
        (output_dir / f"{figure.plot.name}.png").write_bytes(figure.plot.png)
    write_page(
        output_dir / "index.html", "toy.html.jinja", figures=figures, rows=summary(result), names=NAMES, lines=lines
    )
    return result


def toy_table(result: ToyResult) -> Table:
    """Return the toy's result for the terminal: mean ± std over seeds of the accuracy on clean test labels."""
    table = Table(title="Accuracy on clean test labels, %, mean ± std over seeds", box=SIMPLE, padding=(0, 0, 0, 1))
    table.add_column("labels", no_wrap=True, min_width=6)
    for name in MODELS:
        table.add_column(NAMES[name], justify="right", no_wrap=True)
    for reading, cells in summary(result).items():
        table.add_row(reading, *(f"{mean:.1f}±{std:.1f}" for mean, std in cells.values()))
    return table


def summary(result: ToyResult) -> dict[str, dict[str, tuple[float, float]]]:
    """Return reading -> model -> mean and standard deviation over seeds, in percent."""
    return {
        reading: {name: (100 * float(np.mean(values)), 100 * _spread(values)) for name, values in cells.items()}
        for reading, cells in result.accuracy.items()
    }


def per_seed(result: ToyResult) -> DataTable:
    """Return one line per reading and seed."""
    rows: list[Record] = [
        {
            "labels": reading,
            "seed": seed,
            "teacher steps": int(result.teacher_steps[reading][seed]),
            "mean w": float(result.mean_weight[reading][seed]),
            **{name: float(result.accuracy[reading][name][seed]) for name in MODELS},
        }
        for reading in READINGS
        for seed in range(len(result.teacher_steps[reading]))
    ]
    return DataTable("toy", "Every seed", rows)


def draw_regions(result: ToyResult, width: float) -> Figure:
    """Draw each model's decision regions for seed 0, a row per reading."""
    columns = 2 if is_narrow(width) else 3
    count = len(READINGS) * len(MODELS)
    figure = Figure(figsize=(width, (1.25 if is_narrow(width) else 1.75) * count / columns + 0.3), layout="constrained")
    panels = figure.subplots(count // columns, columns, sharex=True, sharey=True)
    x, y = result.grid
    line = np.linspace(x.min(), x.max(), 200)
    cases = [(reading, name) for reading in READINGS for name in MODELS]
    for index, (panel, (reading, name)) in enumerate(zip(panels.flat, cases, strict=True)):
        above = result.first_labels[reading]
        region = result.regions[reading][name]
        panel.contourf(x, y, region, levels=[-0.5, 0.5, 1.5], cmap=ListedColormap([STUDENT, TEACHER]), alpha=0.3)
        panel.plot(line, np.sin(line), color=INK, linewidth=1.4)
        shown = slice(0, 150)
        for side, color, marker in ((~above, STUDENT, "o"), (above, TEACHER, "^")):
            points = result.first_points[:, shown][:, side[shown]]
            panel.plot(*points, linestyle="none", marker=marker, markersize=2.6, color=color, markeredgewidth=0)
        accuracy = 100 * result.accuracy[reading][name][0]
        panel.set_title(f"{NAMES[name]} · {accuracy:.1f} %", size="medium")
        panel.grid(visible=False)
        panel.set_xlim(x.min(), x.max())
        panel.set_ylim(y.min(), y.max())
        if index >= count - columns:
            panel.set_xlabel("x₁, no unit")
        if index % columns == 0:
            panel.set_ylabel(f"x₂, no unit\n({reading} labels)", color=MUTED)
    return figure


def draw_accuracies(result: ToyResult, width: float) -> Figure:
    """Draw every seed's accuracy per model, with mean and standard deviation."""
    figure, panels = grid_of(len(READINGS), width, 2.9, columns=2, sharey=True)
    jitter = np.random.default_rng(0).uniform(-0.17, 0.17, len(result.teacher_steps["clean"]))
    for panel, reading in zip(panels, READINGS, strict=True):
        for index, name in enumerate(reversed(MODELS)):
            values = 100 * result.accuracy[reading][name]
            color = TEACHER if name == "teacher" else STUDENT
            panel.plot(values, index + jitter, linestyle="none", marker="o", markersize=3.2, color=color, alpha=0.45)
            mark: dict[str, Any] = {"marker": "D", "markersize": 5, "markerfacecolor": PAPER, "capsize": 3}
            panel.errorbar(values.mean(), index, xerr=_spread(values), color=INK, **mark)
        panel.set_yticks(range(len(MODELS)), [NAMES[name] for name in reversed(MODELS)])
        panel.set_title(f"{reading} labels")
        panel.set_xlabel("accuracy on clean test labels, %")
        panel.grid(axis="y", visible=False)
    return figure


def _spread(values: np.ndarray) -> float:
    """Standard deviation over seeds, zero for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
