"""The report's two views of who is ahead where: adaptive weights (Fig. 4), and TFS and SFS with their sums (Fig. 5)."""

import numpy as np

from trainer import plots
from trainer.plot_style import render
from trainer.report_parts import DataTable, Figured, Section, absent, extended, first_per_name
from trainer.run_reader import Run
from trainer.subdomains import Subdomains, compare
from trainer.summary import ResultTable, evaluations_of, mean_scores
from trainer.weighting import adaptive_weights


def weights_section(run: Run) -> Section:
    section = Section(
        "weights",
        "Weights",
        "Adaptive weights",
        "w = L_S / (L_S + L_T) compares the student's and the teacher's loss of a training sequence: above ½ the "
        "teacher fits it better (teacher-favored, TFS) and is followed more, below ½ the student does "
        "(student-favored, SFS) and learns from the labels.",
    )
    if run.cache is None or not run.cache.checkpoints or run.student_losses is None:
        return absent(section, "The weights need the cache and the losses of the student SFT model.")
    if not run.cache.losses_known:
        return absent(section, "The imported cache lacks the teacher's loss of some sequences.")
    cache, student = run.cache, run.student_losses
    sharpness = float(run.config.get("distill", {}).get("aw_sharpness", 1.0))
    before = {name: adaptive_weights(student, cache.losses[name], sharpness) for name in cache.checkpoints}
    figures = [
        Figured(
            render("weights-before", lambda width: plots.weights(before, width)),
            "Distribution of adaptive weights before training, one ridge per checkpoint",
            "Before training: the student SFT model against each checkpoint, oldest on top. The vertical tick is the "
            "mean. Computed on training data, the weights follow whichever model has memorised more.",
        )
    ]
    rows = [["before", "student SFT", None, name, *_weight_row(weight_n)] for name, weight_n in before.items()]
    after: dict[str, np.ndarray] = {}
    final = cache.checkpoints[-1]
    for distilled in run.distilled:
        if distilled.losses is None:
            continue
        for name in cache.checkpoints:
            weight_n = adaptive_weights(distilled.losses, cache.losses[name], sharpness)
            rows.append(["after", distilled.method, distilled.seed, name, *_weight_row(weight_n)])
            if name == final:
                after.setdefault(distilled.method, weight_n)
    if after:
        figures.append(
            Figured(
                render("weights-after", lambda width: plots.weights(after, width)),
                "Distribution of adaptive weights after training, one ridge per method",
                f"After training: each finished student against {final}. More blue than before means that the method "
                "moved sequences to the side where the student is ahead.",
            )
        )
    table = DataTable(
        "weights",
        "Weights in numbers",
        [
            "when",
            "student",
            "seed",
            "checkpoint",
            "mean w",
            "10th percentile",
            "median",
            "90th percentile",
            "TFS share",
            "SFS share",
        ],
        rows,
    )
    return extended(section, *figures, tables=[table])


def subdomains_section(run: Run, results: ResultTable) -> Section:
    section = Section(
        "subdomains",
        "Who wins where",
        "Where student and teacher win",
        "The student beats its teacher exactly where its advantage on the student-favored sequences exceeds its "
        "deficit on the teacher-favored ones (Theorem 4). Both areas below are those two sums, divided by the number "
        "of sequences, and their difference is R(f_t) − R(f_s).",
    )
    figures, tables = [], []
    if run.cache is not None and run.cache.checkpoints and run.cache.losses_known:
        final = run.cache.checkpoints[-1]
        teacher = run.cache.losses[final]
        students: list[tuple[str, int | None, np.ndarray]] = []
        if run.student_losses is not None:
            students.append(("student SFT", None, run.student_losses))
        students.extend((d.method, d.seed, d.losses) for d in run.distilled if d.losses is not None)
        rows = [[name, seed, *_subdomain_row(compare(losses, teacher))] for name, seed, losses in students]
        tables.append(
            DataTable(
                "subdomains",
                f"Theorem 4 read off, loss against {final}, nats per sequence",
                [
                    "student",
                    "seed",
                    "SFS share",
                    "TFS share",
                    "SFS advantage",
                    "TFS deficit",
                    "margin",
                    "R(student) − R(teacher)",
                    "identity error",
                    "student ahead",
                ],
                rows,
                unfolded=True,
            )
        )
        shown = first_per_name((name, (teacher - losses, compare(losses, teacher))) for name, _, losses in students)
        if shown:
            figures.append(
                Figured(
                    render(
                        "differences-loss",
                        lambda width: plots.differences(shown, "L_T − L_S, nats", "training sequences, sorted", width),
                    ),
                    "Sorted per-sequence differences of the losses of teacher and student, per method",
                    f"Loss of {final} minus loss of the student, for each training sequence, largest first. Blue: "
                    "the student is ahead; orange: the teacher. The numbers are the areas in nats per sequence. The "
                    "vertical axis leaves out the 0.5 % most extreme sequences on each side; the areas include them.",
                )
            )
    by_score, rows = _score_differences(run, results)
    if by_score:
        figures.append(
            Figured(
                render(
                    "differences-score",
                    lambda width: plots.differences(by_score, "score S − T", "test rows, sorted", width),
                ),
                "Sorted per-row differences of the task scores of student and teacher, per method",
                "The same on the test set, in the task's own score (all tasks together): rows on which the student "
                "scores higher than the teacher are blue, rows on which it scores lower are orange.",
            )
        )
        tables.append(
            DataTable(
                "subdomains_score",
                "The same in the task's score",
                ["student", "task", "rows", "student ahead, share", "teacher ahead, share", "won", "lost", "margin"],
                rows,
            )
        )
    section = extended(section, *figures, tables=tables)
    return section if figures else absent(section, "This needs the cache and the losses of at least one student.")


def _score_differences(
    run: Run, results: ResultTable
) -> tuple[dict[str, tuple[np.ndarray, Subdomains]], list[list[object]]]:
    teacher = run.evaluation("teacher")
    shown: dict[str, tuple[np.ndarray, Subdomains]] = {}
    rows: list[list[object]] = []
    if teacher is None:
        return shown, rows
    for row in results.rows:
        if row.kind == "teacher":
            continue
        ours_all, theirs_all = [], []
        for task in results.tasks:
            ours, theirs = mean_scores(evaluations_of(run, row.label), task), teacher.scores.get(task, {})
            shared = [i for i in ours if i in theirs]
            if not shared:
                continue
            ours_n, theirs_n = np.array([ours[i] for i in shared]), np.array([theirs[i] for i in shared])
            parts = compare(-ours_n, -theirs_n)
            rows.append(
                [
                    row.label,
                    task,
                    parts.n,
                    parts.student_share,
                    parts.teacher_share,
                    parts.advantage,
                    parts.deficit,
                    parts.margin,
                ]
            )
            ours_all.append(ours_n)
            theirs_all.append(theirs_n)
        if ours_all:
            ours_n, theirs_n = np.concatenate(ours_all), np.concatenate(theirs_all)
            shown[row.label] = (ours_n - theirs_n, compare(-ours_n, -theirs_n))
    return shown, rows


def _subdomain_row(parts: Subdomains) -> list[object]:
    return [
        parts.student_share,
        parts.teacher_share,
        parts.advantage,
        parts.deficit,
        parts.margin,
        parts.gap,
        parts.identity_error,
        "yes" if parts.margin > 0 else "no",
    ]


def _weight_row(weight_n: np.ndarray) -> list[object]:
    return [
        float(value)
        for value in (
            weight_n.mean(),
            *np.quantile(weight_n, [0.1, 0.5, 0.9]),
            (weight_n > 0.5).mean(),
            (weight_n < 0.5).mean(),
        )
    ]
