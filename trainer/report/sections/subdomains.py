"""The report's TFS and SFS: who is ahead where, with the sums of Theorem 4, in loss and in score (Fig. 5)."""

from functools import partial

import numpy as np

from trainer.report.parts import Figured, Section, absent, extended, first_per_name, first_seeds
from trainer.report.plots import plots
from trainer.report.plots.style import render
from trainer.report.results import ResultTable, evaluations_of, mean_scores
from trainer.report.run.records import Evaluation, Run
from trainer.report.subdomains import Subdomains, compare
from trainer.report.tables import DataTable, Record


def subdomains_section(run: Run, results: ResultTable) -> Section:
    section = Section(
        "subdomains",
        "Who wins where",
        "Where student and teacher win",
        "The student beats its teacher exactly where its advantage on the student-favored sequences exceeds its "
        "deficit on the teacher-favored ones (Theorem 4): R(f_s) − R(f_t) = TFS deficit − SFS advantage, both sums "
        "divided by the number of sequences. The margin, advantage − deficit, is how far the student is ahead.",
    )
    section = _in_score(_in_loss(section, run), run, results)
    return section if section.plots else absent(section, "This needs the cache and the losses of at least one student.")


def _in_loss(section: Section, run: Run) -> Section:
    """Add what the losses on the training data say of each student against the best checkpoint."""
    if run.cache is None or not run.cache.checkpoints or not run.cache.losses_known:
        return section
    final = run.best or run.cache.checkpoints[-1]
    teacher = run.cache.losses[final]
    students: list[tuple[str, int | None, np.ndarray]] = []
    if run.student_losses is not None:
        students.append(("student SFT", None, run.student_losses))
    students.extend((d.method, d.seed, d.losses) for d in run.distilled if d.losses is not None)
    if not students:
        return section
    sides: dict[str, list[Subdomains]] = {}
    rows: list[Record] = []
    for name, seed, losses in students:
        parts = compare(losses, teacher)
        sides.setdefault(name, []).append(parts)
        rows.append({"student": name, "seed": seed, **_sides(parts)})
    title = f"Theorem 4 read off, loss against {final}, nats per sequence"
    table = DataTable("subdomains", title, rows, unfolded=True)
    shown = first_per_name((name, (teacher - losses, compare(losses, teacher))) for name, _, losses in students)
    balance = Figured(
        render("balance", partial(plots.balance, sides)),
        "Bars of each student's advantage and deficit against its teacher, and the margin between them",
        f"Theorem 4 read off against {final}: a student is ahead of its teacher on the training data where its margin "
        f"is to the right of zero. {_ahead(sides)} The identity holds to {_identity_error(sides):.1g} nats, which is "
        "rounding. Means over seeds; dots are the seeds' margins.",
    )
    differences = Figured(
        render(
            "differences-loss",
            lambda width: plots.differences(shown, "L_T − L_S, nats", "training sequences, %", width),
        ),
        "Sorted per-sequence differences of the losses of teacher and student, per method",
        f"Loss of {final} minus loss of the student, for each training sequence, largest first. Blue: the student is "
        "ahead; orange: the teacher. The numbers are the areas in nats per sequence. The vertical axis leaves out the "
        "0.5 % most extreme sequences on each side; the areas include them."
        + first_seeds([d for d in run.distilled if d.losses is not None]),
    )
    return extended(section, balance, differences, tables=[table])


def _in_score(section: Section, run: Run, results: ResultTable) -> Section:
    """Add what the test rows' own scores say of each student against the teacher."""
    by_score, rows = _score_differences(run, results)
    if not by_score:
        return section
    figure = Figured(
        render(
            "differences-score",
            lambda width: plots.differences(by_score, "score S − T, ×100", "test rows, %", width),
        ),
        "Sorted per-row differences of the task scores of student and teacher, per method",
        "The same on the test set, in the task's own score (all tasks together): rows on which the student scores "
        "higher than the teacher are blue, rows on which it scores lower are orange. A row's score is its mean over "
        "seeds; of metrics over all entities a row counts by its entities.",
    )
    return extended(section, figure, tables=[DataTable("subdomains_score", "The same in the task's score", rows)])


def _score_differences(run: Run, results: ResultTable) -> tuple[dict[str, tuple[np.ndarray, Subdomains]], list[Record]]:
    teacher = run.evaluation("teacher")
    shown: dict[str, tuple[np.ndarray, Subdomains]] = {}
    rows: list[Record] = []
    if teacher is None:
        return shown, rows
    for row in results.rows:
        if row.kind == "teacher":
            continue
        ours_all, theirs_all = [], []  # scores, a row each
        for task in results.tasks:
            students = evaluations_of(run, row.label)
            ours, theirs = mean_scores(students, task), teacher.scores.get(task, {})
            shared = [i for i in ours if i in theirs]
            if not shared:
                continue
            ours_n, theirs_n = (100 * np.array([scores[i] for i in shared]) for scores in (ours, theirs))
            weight_n = _weights([*students, teacher], task, shared)
            ours_n, theirs_n = ours_n * weight_n, theirs_n * weight_n
            parts = compare(-ours_n, -theirs_n)
            rows.append(
                {
                    "student": row.label,
                    "task": task,
                    "rows": parts.n,
                    "student ahead, share": parts.student_share,
                    "teacher ahead, share": parts.teacher_share,
                    "won, ×100": parts.advantage,
                    "lost, ×100": parts.deficit,
                    "margin, ×100": parts.margin,
                }
            )
            ours_all.append(ours_n)
            theirs_all.append(theirs_n)
        if ours_all:
            ours_n, theirs_n = np.concatenate(ours_all), np.concatenate(theirs_all)
            shown[row.label] = (ours_n - theirs_n, compare(-ours_n, -theirs_n))
    return shown, rows


def _weights(evaluations: list[Evaluation], task: str, ids: list[str]) -> np.ndarray:
    """Return how much each row counts, with a mean of 1: of metrics over all entities by its entities, else alike.

    The mean of the evaluations' weights, because a row that both models have right must be on neither's side.
    """
    weights = np.array([[e.weights.get(task, {}).get(i, 1.0) for i in ids] for e in evaluations]).mean(0)
    return weights / weights.mean() if weights.sum() else np.ones(len(ids))


def _ahead(sides: dict[str, list[Subdomains]]) -> str:
    """Name the students whose mean margin is positive: Theorem 4's condition."""
    ahead = [name for name, parts in sides.items() if np.mean([part.margin for part in parts]) > 0]
    return f"Ahead: {', '.join(ahead)}." if ahead else "None is ahead."


def _identity_error(sides: dict[str, list[Subdomains]]) -> float:
    return max(part.identity_error for parts in sides.values() for part in parts)


def _sides(parts: Subdomains) -> Record:
    return {
        "SFS share": parts.student_share,
        "TFS share": parts.teacher_share,
        "SFS advantage": parts.advantage,
        "TFS deficit": parts.deficit,
        "margin": parts.margin,
        "R(student) − R(teacher)": parts.gap,
        "identity error": parts.identity_error,
        "student ahead": "yes" if parts.margin > 0 else "no",
    }
