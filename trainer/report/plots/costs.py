"""Figures of time and memory: what each stage of a run took, and its steps with and without a live teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.report.plots.style import INK, MUTED, PAPER, STUDENT, TEACHER, grid_of, is_narrow, plain
from trainer.report.run.run_costs import LiveTeacher


def stages(rows: Mapping[str, Sequence[float]], width: float) -> Figure:
    """Draw the seconds of every stage; of a method with several seeds the mean, and a dot per seed."""
    longest = max((max(seconds) for seconds in rows.values()), default=1.0)
    unit, factor = ("hours", 3600.0) if longest >= 7200 else ("minutes", 60.0) if longest >= 300 else ("seconds", 1.0)
    figure = Figure(figsize=(width, 0.95 + 0.3 * len(rows)), layout="constrained")
    panel = figure.subplots()
    for y, seconds in enumerate(rows.values()):
        values = np.array(seconds) / factor
        panel.barh(y, values.mean(), height=0.62, color=STUDENT, edgecolor=PAPER, linewidth=0.5)
        if len(values) > 1:
            panel.plot(values, [y] * len(values), ".", color=INK, markersize=4)
        _value(panel, values.max(), y, f"{values.mean():.3g}")
    _rows(panel, list(rows), "stage")
    panel.set_xlabel(unit)
    return figure


def live(measured: Sequence[LiveTeacher], width: float) -> Figure:
    """Draw seconds per step and peak memory of each method's steps, from the cache and with a live teacher."""
    figure, panels = grid_of(2, width, 1.2 + 0.62 * len(measured), columns=2)
    quantities = {"seconds per optimizer step": "seconds_per_step", "peak memory, MiB": "peak_memory_mib"}
    for panel, (label, name) in zip(panels, quantities.items(), strict=True):
        for y, method in enumerate(measured):
            ratio = method.time_ratio if name == "seconds_per_step" else method.memory_ratio
            for offset, arm, color, hatch in ((-0.2, method.cache, STUDENT, None), (0.2, method.live, TEACHER, "////")):
                value, is_live = getattr(arm, name), arm is method.live
                style: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": PAPER, "linewidth": 0.5}
                legend = "teacher live in memory" if is_live else "from the cache"
                panel.barh(y + offset, value, height=0.36, label=None if y else legend, **style)
                _value(panel, value, y + offset, f"{value:.3g}" + (f" (×{ratio:.2f})" if is_live else ""))
        _rows(panel, [f"{method.method}" for method in measured], "method")
        panel.set_xlabel(label)
        panel.margins(x=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=1 if is_narrow(width) else 2)
    return figure


def _value(panel: Axes, x: float, y: float, text: str) -> None:
    panel.annotate(text, (x, y), (5, 0), textcoords="offset points", color=MUTED, va="center", size="small")


def _rows(panel: Axes, names: Sequence[str], label: str) -> None:
    panel.set_yticks(range(len(names)), [plain(name, 24) for name in names])
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.margins(x=0.1)
    panel.set_ylabel(label)
