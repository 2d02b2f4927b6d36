"""One figure a table: every seed of every method as a dot, their mean as a bar, the teacher as a dashed line."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tools.study.tables import Group, Row, by_seed, groups, label, serves, title
from trainer.report.plots.style import MUTED, STUDENT, TEACHER, grid_of, plain, render


def draw_all(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write a PNG for every table with two seeds or more, and return their paths."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for group, students in groups(rows).items():
        if len({row["seed"] for row in students}) > 1:
            path = folder / f"study-{name_of(group)}.png"
            path.write_bytes(render(path.stem, lambda width, g=group, s=students: _draw(s, g, rows, width)).png)
            paths.append(path)
    return paths


def name_of(group: Group) -> str:
    """Name a group's file."""
    data, noise, checkpoints, size, epochs, start = group
    return re.sub(r"[^a-z0-9-]", "", f"{data}-n{100 * float(noise):g}-c{checkpoints}-{size}-e{epochs}-{start}")


def _draw(rows: Sequence[Row], group: Group, everything: Sequence[Row], width: float) -> Figure:
    scores = [score for score in ("test", "shifted") if any(row[score] for row in rows)]
    names = sorted({label(row) for row in rows}, key=lambda name: np.mean(list(by_seed(rows, name, "test").values())))
    figure, panels = grid_of(len(scores), width, 0.7 + 0.32 * len(names), columns=2, sharey=True)
    for panel, score in zip(panels, scores, strict=True):
        for place, name in enumerate(names):
            values = list(by_seed(rows, name, score).values())
            panel.plot(values, [place] * len(values), "o", color=STUDENT, alpha=0.6, markeredgewidth=0)
            panel.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color=STUDENT)
        for row in everything:
            if not row["seed"] and row["method"] == "teacher" and serves(row, group):
                panel.axvline(100 * float(row[score]), color=TEACHER, linestyle="--", linewidth=1.2)
        panel.set_yticks(range(len(names)), [plain(name) for name in names])
        panel.set_xlabel(f"{score}, %; dashed: the teacher")
    figure.suptitle(plain(title(group), 110), fontsize="medium", color=MUTED, x=0.01, ha="left")
    return figure
