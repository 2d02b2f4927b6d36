"""The report's figures; each function draws one at a given width in inches, and `style.render` calls it.

scores        each model's score with its interval, per task             (the table, drawn)
schedule      both terms of every checkpoint at every stage, the choice  (Fig. 3)
kl_matrix     mean KL between every two checkpoints on the probe         (Fig. 3)
weights       distribution of AW, one row per checkpoint or method       (Fig. 4)
differences   teacher − student, sorted, with the area on each side      (Fig. 5)
balance       both areas per method, and by how much one exceeds the other   (Theorem 4)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from trainer.methods.schedules import StageChoice
from trainer.report.plots.style import GRID, INK, MUTED, PAPER, STUDENT, TEACHER, grid_of, is_narrow, plain
from trainer.report.results import ResultTable
from trainer.report.subdomains import Subdomains

BINS = np.linspace(0, 1, 51)
SORTED_POINTS = 400
SCHEDULE_TERMS = {
    "kl": ("KL(best ‖ checkpoint)", "KL(student ‖ checkpoint)"),
    "risk": ("risk of the checkpoint", "distance of the student's risk"),
    "forward_kl": ("KL(best ‖ checkpoint)", "KL(checkpoint ‖ student)"),
}


def scores(table: ResultTable, width: float) -> Figure:
    """Draw every score as a dot with its 95 % interval, one panel per task; the dashed line is the teacher."""
    rows = table.rows[::-1]
    figure, panels = grid_of(len(table.tasks), width, 0.9 + 0.3 * len(rows), columns=3)
    for index, (panel, (task, metric)) in enumerate(zip(panels, table.tasks.items(), strict=True)):
        for y, row in enumerate(rows):
            cell = row.cells.get(task)
            if cell is None:
                panel.text(
                    0.02, y, "missing", transform=panel.get_yaxis_transform(), color=MUTED, va="center", size="small"
                )
                continue
            color = TEACHER if row.kind == "teacher" else STUDENT
            panel.plot([100 * cell.low, 100 * cell.high], [y, y], color=color, linewidth=2, solid_capstyle="round")
            filled = color if cell.best or row.kind == "teacher" else PAPER
            panel.plot(
                100 * cell.mean,
                y,
                "D" if row.kind == "teacher" else "o",
                color=color,
                markerfacecolor=filled,
                markersize=7,
            )
            if row.kind == "teacher":
                panel.axvline(100 * cell.mean, color=TEACHER, linewidth=1, linestyle=(0, (4, 3)))
        shown = is_narrow(width) or index % 3 == 0
        panel.set_yticks(range(len(rows)), [plain(row.label, 22) for row in rows] if shown else [])
        panel.set_ylim(-0.6, len(rows) - 0.4)
        panel.grid(axis="y", visible=False)
        panel.set_title(plain(task))
        if shown:
            panel.set_ylabel("model")
        panel.set_xlabel(plain(f"{metric}, ×100"))
        panel.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def schedule(stages: Sequence[StageChoice], metric: str, width: float) -> Figure:
    """Stack both terms of the choice for every checkpoint, one panel per stage; the chosen bar is marked (Fig. 3)."""
    quality_label, distance_label = SCHEDULE_TERMS[metric]
    names = list(stages[0].quality)
    y = np.arange(len(names))
    figure, panels = grid_of(len(stages), width, 1.3 + 0.28 * len(names), columns=4, sharey=True)
    columns = 1 if is_narrow(width) else min(4, len(stages))
    for index, (panel, stage) in enumerate(zip(panels, stages, strict=True)):
        quality = np.array([stage.quality[name] for name in names])
        total = quality + np.array([stage.distance[name] for name in names])
        bars: dict[str, Any] = {"height": 0.62, "edgecolor": PAPER, "linewidth": 0.5}
        panel.barh(y, quality, color=TEACHER, label=quality_label, **bars)
        panel.barh(y, total - quality, left=quality, color=STUDENT, label=distance_label, hatch="////", **bars)
        choice, top = names.index(stage.choice or ""), total.max() or 1
        panel.barh(choice, total[choice], height=0.84, facecolor="none", edgecolor=INK, linewidth=1.6)
        panel.text(total[choice] + 0.02 * top, choice, "◀", color=INK, va="center", size="small")
        panel.set_title(f"Stage {stage.stage + 1}", size="medium")
        margin = "" if stage.margin is None else f"\nmargin {stage.margin:.3g}"
        panel.set_xlabel(f"nats per position{margin}")
        panel.set_xlim(0, top * 1.14)
        panel.set_yticks(y, [plain(name, 18) for name in names])
        panel.grid(axis="y", visible=False)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        if index % columns == 0:
            panel.set_ylabel("checkpoint")
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=1 if is_narrow(width) else 2)
    return figure


def kl_matrix(checkpoints: Sequence[str], kl_NN: np.ndarray, width: float) -> Figure:
    """Draw KL(row ‖ column) between every two checkpoints, each cell with its value."""
    count = len(checkpoints)
    side = min(width, 1.6 + 0.62 * count)
    figure = Figure(figsize=(width, max(2.2, side * 0.72)), layout="constrained")
    panel = figure.subplots()
    top = max(float(kl_NN.max()), 1e-12)
    panel.imshow(kl_NN, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    for i in range(count):
        for j in range(count):
            light = kl_NN[i, j] > 0.55 * top
            panel.text(
                j,
                i,
                f"{kl_NN[i, j]:.2g}",
                ha="center",
                va="center",
                color="#000000" if light else "#ffffff",
                size="small" if count <= 8 else "x-small",
            )
    names = [plain(name, 16) for name in checkpoints]
    panel.set_xticks(
        range(count),
        names,
        rotation=35 if is_narrow(width) or count > 5 else 0,
        ha="right" if is_narrow(width) or count > 5 else "center",
    )
    panel.set_yticks(range(count), names)
    panel.set_xlabel("q: checkpoint compared with")
    panel.set_ylabel("p: checkpoint")
    panel.set_title("KL(p ‖ q), nats per position")
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    return figure


def weights(rows: Mapping[str, np.ndarray], what: str, width: float) -> Figure:
    """Draw the distribution of adaptive weights, a ridge per entry, with the share on each side (Fig. 4).

    `what` says what an entry is: a checkpoint, a method.
    """
    figure = Figure(figsize=(width, 1.2 + 0.62 * len(rows)), layout="constrained")
    panel = figure.subplots()
    middle = len(BINS) // 2
    densities = {name: np.histogram(weight_n, BINS)[0] / max(len(weight_n), 1) for name, weight_n in rows.items()}
    top = max((density.max() for density in densities.values()), default=1) or 1
    for y, (name, density) in enumerate(reversed(densities.items())):
        height = y + 0.66 * density / top
        panel.stairs(height[:middle], BINS[: middle + 1], baseline=y, fill=True, color=STUDENT, alpha=0.85)
        panel.stairs(height[middle:], BINS[middle:], baseline=y, fill=True, color=TEACHER, alpha=0.85)
        panel.axhline(y, color=GRID, linewidth=0.7)
        weight_n = rows[name]
        panel.text(0.005, y + 0.72, f"SFS {np.mean(weight_n < 0.5):.0%}", color=STUDENT, size="small", weight="bold")
        panel.text(
            0.995,
            y + 0.72,
            f"TFS {np.mean(weight_n > 0.5):.0%}",
            color=TEACHER,
            ha="right",
            size="small",
            weight="bold",
        )
        panel.plot([weight_n.mean()] * 2, [y, y + 0.66], color=INK, linewidth=1.2)
    panel.axvline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    panel.set_yticks(np.arange(len(rows)) + 0.3, [plain(name, 20) for name in reversed(densities)])
    panel.tick_params(axis="y", length=0)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, len(rows))
    panel.grid(axis="y", visible=False)
    panel.spines["left"].set_visible(False)
    panel.set_ylabel(f"{what}; height: share of sequences" if len(rows) > 2 else what)
    panel.set_xlabel(
        "w: 0 labels only, 1 teacher only"
        if is_narrow(width)
        else "w = L_S / (L_S + L_T), without unit: 0 learns from labels only, 1 from the teacher only"
    )
    return figure


def differences(rows: Mapping[str, tuple[np.ndarray, Subdomains]], unit: str, xlabel: str, width: float) -> Figure:
    """Draw sorted teacher − student differences per method, with the area and its size on each side (Fig. 5)."""
    figure, panels = grid_of(len(rows), width, 2.3, columns=3, sharey=True)
    columns = 1 if is_narrow(width) else min(3, len(rows))
    for index, (panel, (name, (difference_n, parts))) in enumerate(zip(panels, rows.items(), strict=True)):
        ordered = np.sort(difference_n)[::-1]
        share = (np.arange(len(ordered)) + 0.5) / len(ordered)
        keep = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), SORTED_POINTS)).astype(int))
        x, y = share[keep], ordered[keep]
        panel.fill_between(x, 0, np.maximum(y, 0), color=STUDENT, alpha=0.85, linewidth=0)
        panel.fill_between(x, 0, np.minimum(y, 0), color=TEACHER, alpha=0.85, linewidth=0)
        panel.axhline(0, color=MUTED, linewidth=0.8)
        _fit_tails(panel, ordered)
        panel.text(
            0.97,
            0.97,
            f"student ahead\n+{parts.advantage:.3g}",
            transform=panel.transAxes,
            color=STUDENT,
            va="top",
            ha="right",
            size="small",
            weight="bold",
        )
        panel.text(
            0.03,
            0.05,
            f"teacher ahead\n−{parts.deficit:.3g}",
            transform=panel.transAxes,
            color=TEACHER,
            size="small",
            weight="bold",
        )
        panel.set_title(plain(name, 26), size="medium")
        panel.set_xticks([0, 0.25, 0.5, 0.75, 1])
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
        panel.set_xlim(0, 1)
        if index % columns == 0:
            panel.set_ylabel(unit)
        if index >= len(rows) - columns:
            panel.set_xlabel(xlabel)
    return figure


def _fit_tails(panel: Axes, ordered: np.ndarray) -> None:
    """Cut the axis at the 0.5 % outermost sequences: a few extreme ones would flatten all the others."""
    low, high = np.quantile(ordered, [0.005, 0.995])
    reach = max(-low, high, 1e-9)
    low, high = min(low, -reach / 2) * 1.2, max(high, reach / 2) * 1.2
    shared_low, shared_high = (0.0, 0.0) if panel.get_autoscaley_on() else panel.get_ylim()
    panel.set_ylim(min(low, shared_low), max(high, shared_high))


def balance(rows: Mapping[str, Sequence[Subdomains]], width: float) -> Figure:
    """Draw each student's SFS advantage to the right, its TFS deficit to the left, and their difference (Theorem 4).

    Bars are means over seeds; the diamond is the mean margin, a dot each seed's.
    """
    figure = Figure(figsize=(width, 1.15 + 0.34 * len(rows)), layout="constrained")
    panel = figure.subplots()
    bars: dict[str, Any] = {"height": 0.6, "edgecolor": PAPER, "linewidth": 0.5}
    for y, parts in enumerate(rows.values()):
        advantage, deficit, margin = (
            float(np.mean([getattr(part, name) for part in parts])) for name in ("advantage", "deficit", "margin")
        )
        labels = ("student ahead (SFS advantage)", "teacher ahead (TFS deficit)", "margin") if not y else (None,) * 3
        panel.barh(y, advantage, color=STUDENT, label=labels[0], **bars)
        panel.barh(y, -deficit, color=TEACHER, label=labels[1], hatch="////", **bars)
        if len(parts) > 1:
            panel.plot([part.margin for part in parts], [y] * len(parts), ".", color=INK, markersize=4)
        panel.plot(margin, y, "D", color=INK, markerfacecolor=PAPER, markersize=6, label=labels[2], linestyle="none")
        panel.annotate(
            f"{margin:+.3g}".replace("-", "−"),
            (max(advantage, margin), y),
            (6, 0),
            textcoords="offset points",
            color=INK,
            va="center",
            size="small",
        )
    panel.axvline(0, color=MUTED, linewidth=0.9)
    panel.set_yticks(range(len(rows)), [plain(name, 22) for name in rows])
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.grid(axis="y", visible=False)
    panel.set_xlabel("nats per sequence" if is_narrow(width) else "nats per training sequence, mean over all")
    panel.set_ylabel("student")
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=1 if is_narrow(width) else 3)
    return figure
