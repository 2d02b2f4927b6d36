"""Figures over optimizer steps: losses with their stages, and whatever else was logged."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from trainer.report.plots.style import GRID, INK, STUDENT, TEACHER, grid_of, is_narrow, plain, series_style

MOST_LINES = 6
HEAT_STEPS = 200


def training_losses(logs: Mapping[str, tuple[list[dict[str, Any]], list[int]]], width: float) -> Figure:
    """Draw training and validation loss over steps, one panel per method, a band for every other stage."""
    figure, panels = grid_of(len(logs), width, 2.1, columns=3)
    for panel, (name, (log, first_steps)) in zip(panels, logs.items(), strict=True):
        step, loss = logged(log, "loss")
        _bands(panel, first_steps, max((entry.get("step", 0) for entry in log), default=1))
        panel.plot(step, loss, color=STUDENT, label="training")
        step, loss = logged(log, "eval_loss")
        if len(step):
            panel.plot(step, loss, color=TEACHER, marker="s", linestyle="--", linewidth=1, label="validation")
        panel.set_title(plain(name, 26), size="medium")
        panel.set_xlabel("optimizer step")
        panel.set_ylabel("loss, nats")
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        _log_if_wide(panel)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=2)
    return figure


def curves(logs: Mapping[str, list[dict[str, Any]]], quantities: Mapping[str, str], width: float) -> Figure:
    """Draw logged quantities over steps, a panel per quantity (key → axis label).

    A line per method; one line where all methods are alike; where more than six differ, a strip of color per method.
    """
    figure, panels = grid_of(len(quantities), width, 2.4 + 0.06 * max(0, len(logs) - MOST_LINES), columns=2)
    for panel, (key, label) in zip(panels, quantities.items(), strict=True):
        series = {name: found for name, log in logs.items() if len((found := logged(log, key))[0])}
        first = next(iter(series.values()))
        if len(series) > 1 and all(_alike(first, other) for other in series.values()):
            panel.plot(*first, color=INK)
            panel.set_title("the same for every method", size="small")
        elif len(series) > MOST_LINES:
            _strips(figure, panel, series, label)
        else:
            for name, (step, value) in series.items():
                style: dict[str, Any] = dict(series_style(list(logs).index(name)))
                panel.plot(step, value, label=plain(name, 20), markevery=max(1, len(step) // 6), **style)
        panel.set_xlabel("optimizer step")
        if not panel.images:
            panel.set_ylabel(label)
            if label.endswith("nats"):
                _log_if_wide(panel)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    lines = {str(line.get_label()): line for panel in panels for line in panel.get_lines()}
    lines = {name: line for name, line in lines.items() if not name.startswith("_")}
    if lines:
        figure.legend(list(lines.values()), list(lines), loc="outside upper left", ncols=3 if is_narrow(width) else 6)
    return figure


def logged(log: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of the entries that have `key`."""
    pairs = [
        (entry["step"], entry[key]) for entry in log if "step" in entry and isinstance(entry.get(key), int | float)
    ]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, dtype=np.float64)


def _alike(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    return (
        len(one[0]) == len(other[0]) and bool((one[0] == other[0]).all()) and np.allclose(one[1], other[1], rtol=1e-6)
    )


def _strips(figure: Figure, panel: Axes, series: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str) -> None:
    """A row per method, its values as colors: lines of so many methods would hide each other."""
    steps = np.concatenate([step for step, _ in series.values()])
    grid = np.linspace(steps.min(), steps.max(), min(HEAT_STEPS, len(np.unique(steps))))
    values = [np.interp(grid, step, value, left=np.nan, right=np.nan) for step, value in series.values()]
    half = (grid[-1] - grid[0]) / max(1, len(grid) - 1) / 2
    image = panel.imshow(
        values,
        cmap="cividis",
        aspect="auto",
        interpolation="nearest",
        extent=(float(grid[0] - half), float(grid[-1] + half), len(values) - 0.5, -0.5),
    )
    panel.set_yticks(range(len(values)), [plain(name, 14) for name in series], size="small")
    panel.grid(visible=False)
    bar = figure.colorbar(image, ax=panel, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)


def _log_if_wide(panel: Axes) -> None:
    """Make the axis logarithmic where the first losses would flatten all later ones; a loss of 0 or less forbids it."""
    values = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in panel.get_lines()])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 6 * values.min():
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_ylabel(f"{panel.get_ylabel()}, log scale")


def _bands(panel: Axes, first_steps: Sequence[int], last_step: int) -> None:
    for index, first in enumerate(first_steps):
        if index % 2:
            until = first_steps[index + 1] if index + 1 < len(first_steps) else last_step
            panel.axvspan(first, until, color=GRID, alpha=0.6, linewidth=0)
