"""Everything that the report says of one run: who won, the facts beside it, and its sections in order.

Run ─▶ RunReport(results, summary, cautions, facts, sections, tables, missing)
"""

import numpy as np

from trainer.report.parts import RunReport, size
from trainer.report.results import LABELS, result_table
from trainer.report.run.records import SELECTED_BY, STUDENT_SFT, TEACHER, Run
from trainer.report.run.settings import setting
from trainer.report.sections.cautions import cautions
from trainer.report.sections.changes import changes_sections
from trainer.report.sections.costs import costs_section
from trainer.report.sections.schedule import schedule_section
from trainer.report.sections.scores import result_rows, scores_section
from trainer.report.sections.subdomains import subdomains_section
from trainer.report.sections.summary import summary
from trainer.report.sections.training import cache_section, training_section
from trainer.report.sections.weights import weights_section
from trainer.report.tables import DataTable, Record

BEST_BY = {
    "held_out": "lowest held-out loss",
    "metric": "best answers to the validation examples",
    "last": "the last",
}
"""What `distill.best` says of the checkpoint that it chooses; one that is named needs no reason."""


def report_of(run: Run, name: str, slug: str, settings: str) -> RunReport:
    """Build every part of one run's report; `name` tells it from others, `slug` is it as a file name."""
    results, last = result_table(run), result_table(run, which="last")
    return RunReport(
        name=name,
        slug=slug,
        results=results,
        last=last,
        summary=summary(run, results),
        cautions=cautions(run, results),
        facts=_facts(run),
        sections=[
            scores_section(run, results),
            *changes_sections(run),
            schedule_section(run),
            weights_section(run),
            subdomains_section(run, results),
            training_section(run),
            costs_section(run),
            cache_section(run),
        ],
        tables=[result_rows(results, last), *_sequence_losses(run)],
        missing=run.missing,
        settings=settings,
        selected_by=run.selections(),
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = []
    for model in (TEACHER, STUDENT_SFT):
        evaluation = run.evaluation(model)
        if evaluation and evaluation.parameters:
            facts.append((f"{LABELS[model].split()[0]}, parameters", size(evaluation.parameters, "B")))
    if run.cache:
        facts.append(("training sequences", f"{run.cache.n_sequences:,}"))
        facts.append(("positions", f"{run.cache.n_positions:,}"))
        facts.append(("checkpoints", str(len(run.cache.checkpoints))))
        how = BEST_BY.get(str(setting(run.config, "distill", "best")), "named")
        facts.extend([("the best checkpoint", f"{run.best}, {how}")] if run.best else [])
        if run.cache.checkpoints:
            per_position = np.mean(list(run.cache.bytes.values())) / run.cache.n_positions
            facts.append(("cache, bytes per position", f"{per_position:.1f}"))
    student_log = run.sft_logs.get(STUDENT_SFT, [])
    if any("eval_loss" in entry for entry in student_log):
        by_metric = any("eval_metric" in entry for entry in student_log)
        facts.append(("the student SFT, on validation", SELECTED_BY["metric" if by_metric else "loss"]))
    if run.corpus_counts:
        facts.append(("sequences cut to fit", f"{run.corpus_counts.get('truncated', 0):,}"))
        facts.append(("sequences dropped", f"{run.corpus_counts.get('dropped', 0):,}"))
    seeds = {d.seed for d in run.distilled}
    if seeds:
        facts.append(("methods × seeds", f"{len(run.methods())} × {len(seeds)}"))
    return facts


def _sequence_losses(run: Run) -> list[DataTable]:
    if run.cache is None or not run.cache.checkpoints:
        return []
    columns: dict[str, np.ndarray] = {f"teacher {name}": run.cache.losses[name] for name in run.cache.checkpoints}
    if run.student_losses is not None:
        columns["student SFT"] = run.student_losses
    columns |= {f"{d.method} seed {d.seed}": d.losses for d in run.distilled if d.losses is not None}
    rows: list[Record] = []
    positions_N = run.cache.sequence_positions
    for row, sample_id in enumerate(run.cache.sample_ids):
        values = {name: None if np.isnan(losses[row]) else float(losses[row]) for name, losses in columns.items()}
        rows.append({"sequence": sample_id, "positions": int(positions_N[row]), **values})
    return [DataTable("sequences", "Losses of every training sequence, nats", rows, shown=False)]
