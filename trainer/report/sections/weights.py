"""The report's adaptive weights: their distribution per checkpoint before training, per method after it (Fig. 4)."""

import numpy as np

from trainer.methods.weighting import adaptive_weights
from trainer.report.parts import Figured, Section, absent, extended, first_seeds
from trainer.report.plots import plots
from trainer.report.plots.style import render
from trainer.report.run.records import Run
from trainer.report.run.settings import setting
from trainer.report.tables import DataTable, Record


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
    sharpness = _number(setting(run.config, "distill", "aw_sharpness"), 1.0)
    before = {name: adaptive_weights(student, cache.losses[name], sharpness) for name in cache.checkpoints}
    figures = []
    rows = [_weight_row("before", "student SFT", None, name, w_n) for name, w_n in before.items()]
    used = "These are the weights that methods with +aw used. "
    if run.aw_losses is not None:
        student_N, teacher = run.aw_losses.student_N, run.aw_losses.teacher or cache.losses
        crossfit = {name: adaptive_weights(student_N, teacher[name], sharpness) for name in cache.checkpoints}
        rows += [_weight_row("cross-fitted", "student SFT", None, name, w_n) for name, w_n in crossfit.items()]
        figures.append(_crossfit(crossfit, both=bool(run.aw_losses.teacher)))
        used = "What the weights would have been without cross-fitting. "
    figures.append(
        Figured(
            render("weights-before", lambda width: plots.weights(before, "checkpoint", width)),
            "Distribution of adaptive weights before training, one ridge per checkpoint",
            "Before training: the student SFT model against each checkpoint, oldest on top. The vertical tick is the "
            f"mean. {used}Computed on training data, they follow whichever model has memorised more.",
        )
    )
    final = run.best or cache.checkpoints[-1]
    after: dict[str, np.ndarray] = {}
    for distilled in run.distilled:
        if distilled.losses is None:
            continue
        for name in cache.checkpoints:
            weight_n = adaptive_weights(distilled.losses, cache.losses[name], sharpness)
            rows.append(_weight_row("after", distilled.method, distilled.seed, name, weight_n))
            if name == final:
                after.setdefault(distilled.method, weight_n)
    if after:
        figures.append(
            Figured(
                render("weights-after", lambda width: plots.weights(after, "method", width)),
                "Distribution of adaptive weights after training, one ridge per method",
                f"After training: each finished student against {final}, the teacher. More blue than before means that "
                "the method moved sequences to the side where the student is ahead."
                + first_seeds([d for d in run.distilled if d.losses is not None]),
            )
        )
    return extended(section, *figures, tables=[DataTable("weights", "Weights in numbers", rows)])


def _crossfit(weights: dict[str, np.ndarray], *, both: bool) -> Figured:
    """Draw the weights that training used; `both` models were cross-fitted, or the student alone."""
    alone = "; only the student could be: the teacher's losses are the cache's, on data that it may know."
    return Figured(
        render("weights-crossfit", lambda width: plots.weights(weights, "checkpoint", width)),
        "Distribution of the cross-fitted weights that training used, one ridge per checkpoint",
        "What methods with +aw used: each sequence judged by models that were fine-tuned on the other half of "
        f"the data{'.' if both else alone}",
    )


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def _weight_row(when: str, student: str, seed: int | None, checkpoint: str, weight_n: np.ndarray) -> Record:
    low, median, high = (float(value) for value in np.quantile(weight_n, [0.1, 0.5, 0.9]))
    return {
        "when": when,
        "student": student,
        "seed": seed,
        "checkpoint": checkpoint,
        "mean w": float(weight_n.mean()),
        "10th percentile": low,
        "median": median,
        "90th percentile": high,
        "TFS share": float((weight_n > 0.5).mean()),
        "SFS share": float((weight_n < 0.5).mean()),
    }
