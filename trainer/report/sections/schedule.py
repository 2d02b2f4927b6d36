"""The report's schedule: both terms of every choice, and how far the checkpoints are from each other (Fig. 3)."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from trainer.report.parts import Figured, Section, absent, extended, first_per_name
from trainer.report.plots import plots
from trainer.report.plots.style import render
from trainer.report.run.records import Distilled, Run
from trainer.report.tables import DataTable, Record


def schedule_section(run: Run) -> Section:
    section = Section(
        "schedule",
        "Schedule",
        "Which checkpoint taught, and why",
        "At the start of every stage, scheduled methods compare each checkpoint with the best one and with the "
        "student as it stands, and let the checkpoint with the smaller sum teach.",
    )
    table = DataTable("schedule", "Every stage's terms and choice", [row for d in run.distilled for row in _rows(d)])
    scheduled = first_per_name((d.method, d) for d in run.distilled if d.stages and all(s.quality for s in d.stages))
    section = extended(section, *(_terms(first, run) for first in scheduled.values()), tables=[table])
    if run.cache is not None and len(run.cache.checkpoints) > 1:
        section = _between_checkpoints(section, run.cache.checkpoints, run.cache.kl_NN)
    return section if scheduled else absent(section, "No scheduled method (scd, scd+aw) has left its plan with terms.")


def _rows(distilled: Distilled) -> list[Record]:
    """Return a row for each stage and checkpoint that was compared, or that taught."""
    return [
        {
            "method": distilled.method,
            "seed": distilled.seed,
            "stage": stage.stage + 1,
            "first step": stage.first_step,
            "checkpoint": name,
            "to best, nats": stage.quality.get(name),
            "to student, nats": stage.distance.get(name),
            "chosen": "yes" if name == stage.choice else "",
            "margin, nats": stage.margin if name == stage.choice else None,
        }
        for stage in distilled.stages
        for name in stage.quality or ([stage.choice] if stage.choice else [])
    ]


def _terms(first: Distilled, run: Run) -> Figured:
    """Draw one seed's terms; the caption has who taught all of the method's."""
    choices = _choices([other for other in run.distilled if other.method == first.method])
    return Figured(
        render(f"schedule-{first.method}", partial(plots.schedule, first.stages, first.metric)),
        f"Stacked bars of both terms for every checkpoint at every stage of {first.method}",
        f"{first.method}, seed {first.seed}. The outlined bar with the arrow is the checkpoint that taught the stage; "
        "the margin is how far the second-best sum was. Every stage has its own scale: the student's part shrinks as "
        f"it learns. Who taught, stage by stage: {choices}.",
    )


def _between_checkpoints(section: Section, checkpoints: Sequence[str], kl_NN: np.ndarray) -> Section:
    """Add how far the checkpoints are from each other."""
    figure = Figured(
        render("kl-matrix", lambda width: plots.kl_matrix(checkpoints, kl_NN, width)),
        "Matrix of the mean KL divergence between every two checkpoints",
        "How far the checkpoints are from each other on the probe. Small steps beside the diagonal mean that the "
        "teacher was saved often enough for each checkpoint to be a short way from the next.",
    )
    rows: list[Record] = [
        {"p \\ q": name, **dict(zip(checkpoints, kl_N, strict=True))}
        for name, kl_N in zip(checkpoints, kl_NN.tolist(), strict=True)
    ]
    return extended(section, figure, tables=[DataTable("kl_matrix", "KL between checkpoints, nats per position", rows)])


def _choices(distilled: list[Distilled]) -> str:
    """Say who taught, stage by stage; seeds with the same teachers are named together."""
    seeds: dict[str, list[int]] = {}
    for each in distilled:
        seeds.setdefault(" → ".join(stage.choice or "–" for stage in each.stages), []).append(each.seed)
    return "; ".join(
        f"{'seed' if len(found) == 1 else 'seeds'} {', '.join(map(str, found))}: {taught}"
        for taught, found in seeds.items()
    )
