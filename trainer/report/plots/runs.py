"""The figure that spans runs: each method's score in every run, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.report.plots.style import MUTED, PAPER, grid_of, is_narrow, plain, series_style


@dataclass(frozen=True)
class Point:
    """A score with its 95 % interval, as fractions; a mean over tasks has no interval."""

    value: float
    low: float | None = None
    high: float | None = None


def runs(panels_of: Mapping[str, Mapping[str, Mapping[str, Point]]], names: list[str], width: float) -> Figure:
    """Draw a panel per task (axis label → run → model → point): models as rows, runs as colors and shapes.

    Thin lines join what one model scored in different runs; `names` are the runs in the legend's order.
    """
    models = _in_order([list(found) for runs in panels_of.values() for found in runs.values()])
    height = 1.1 + (0.2 + 0.12 * len(names)) * len(models)
    figure, panels = grid_of(len(panels_of), width, height, columns=3)
    drawn: dict[str, Any] = {}
    spread = min(0.7, 0.18 * len(names))
    for position, (panel, (label, found)) in enumerate(zip(panels, panels_of.items(), strict=True)):
        for row, model in enumerate(models):
            joined = []
            for index, name in enumerate(names):
                point = found.get(name, {}).get(model)
                if point is None:
                    continue
                y = row + spread * ((index + 0.5) / len(names) - 0.5)
                style = series_style(index)
                if point.low is not None and point.high is not None:
                    panel.plot([100 * point.low, 100 * point.high], [y, y], color=style["color"], linewidth=1.2)
                marks: dict[str, Any] = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
                (drawn[name],) = panel.plot(100 * point.value, y, markersize=6.5, markeredgecolor=PAPER, **marks)
                joined.append((100 * point.value, y))
            if joined:
                panel.plot(*zip(*joined, strict=True), color=MUTED, linewidth=0.8, zorder=0)
        shown = is_narrow(width) or position % 3 == 0
        panel.set_yticks(range(len(models)), [plain(model, 20) for model in models] if shown else [])
        panel.set_ylim(len(models) - 0.4, -0.6)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel(plain(label, 40))
        if shown:
            panel.set_ylabel("model")
        panel.xaxis.set_major_locator(MaxNLocator(5))
    handles = [drawn[name] for name in names if name in drawn]
    labels = [plain(name, 44) for name in names if name in drawn]
    figure.legend(handles, labels, loc="outside upper left", ncols=1 if is_narrow(width) else 2)
    return figure


def _in_order(lists: list[list[str]]) -> list[str]:
    """Merge lists of names: each new name goes behind the one that it follows in its own list."""
    merged: list[str] = []
    for names in lists:
        for before, name in zip([None, *names], names, strict=False):
            if name not in merged:
                merged.insert(merged.index(before) + 1 if before in merged else len(merged), name)
    return merged
