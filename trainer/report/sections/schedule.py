"""The report's schedule: both terms of every choice, and how far the checkpoints are from each other (Fig. 3)."""

from functools import partial

from trainer.report.parts import Figured, Section, absent, extended
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
    rows: list[Record] = []
    figures = []
    drawn: set[str] = set()
    for distilled in run.distilled:
        stages, metric = distilled.stages, distilled.metric
        for stage in stages:
            for name in stage.quality or ([stage.choice] if stage.choice else []):
                rows.append(
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
                )
        if distilled.method in drawn or not stages or not all(stage.quality for stage in stages):
            continue
        drawn.add(distilled.method)
        choices = _choices([other for other in run.distilled if other.method == distilled.method])
        figures.append(
            Figured(
                render(f"schedule-{distilled.method}", partial(plots.schedule, stages, metric)),
                f"Stacked bars of both terms for every checkpoint at every stage of {distilled.method}",
                f"{distilled.method}, seed {distilled.seed}. The outlined bar with the arrow is the checkpoint that "
                "taught the stage; the margin is how far the second-best sum was. Every stage has its own scale: the "
                f"student's part shrinks as it learns. Who taught, stage by stage: {choices}.",
            )
        )
    table = DataTable("schedule", "Every stage's terms and choice", rows)
    cache = run.cache
    if cache is not None and len(cache.checkpoints) > 1:
        kl_NN = cache.kl_NN
        figures.append(
            Figured(
                render("kl-matrix", lambda width: plots.kl_matrix(cache.checkpoints, kl_NN, width)),
                "Matrix of the mean KL divergence between every two checkpoints",
                "How far the checkpoints are from each other on the probe. Small steps beside the diagonal mean that "
                "the teacher was saved often enough for each checkpoint to be a short way from the next.",
            )
        )
        table_kl = DataTable(
            "kl_matrix",
            "KL between checkpoints, nats per position",
            [
                {"p \\ q": name, **dict(zip(cache.checkpoints, kl_N, strict=True))}
                for name, kl_N in zip(cache.checkpoints, kl_NN.tolist(), strict=True)
            ],
        )
        section = extended(section, *figures, tables=[table, table_kl])
    else:
        section = extended(section, *figures, tables=[table])
    return section if drawn else absent(section, "No scheduled method (scd, scd+aw) has left its plan with terms.")


def _choices(distilled: list[Distilled]) -> str:
    """Say who taught, stage by stage; seeds with the same teachers are named together."""
    seeds: dict[str, list[int]] = {}
    for each in distilled:
        seeds.setdefault(" → ".join(stage.choice or "–" for stage in each.stages), []).append(each.seed)
    return "; ".join(
        f"{'seed' if len(found) == 1 else 'seeds'} {', '.join(map(str, found))}: {taught}"
        for taught, found in seeds.items()
    )
