"""What a reader must know before believing the table, a sentence each, with what to change.

undertrained      the lowest validation loss is the last one measured
one teacher       a schedule named the same checkpoint at every stage: the best one, which is td, or an earlier one
one-sided weights the mean weight of adaptive weighting is outside [0.1, 0.9]
by heart          held-out loss rises while training loss falls: single examples are learned, wrong labels too
baseline          a model is not above what one that has learned nothing would score
forgotten         a student is worse than before training on a task that it was not trained for
"""

from collections.abc import Sequence

import numpy as np

from trainer.report.results import ResultTable
from trainer.report.run.records import STUDENT_SFT, TEACHER, Distilled, Run
from trainer.report.run.settings import setting
from trainer.report.sections.changes import forgotten

WEIGHT_RANGE = (0.1, 0.9)
FALLING_NATS = 1e-3
"""A fall of the validation loss that is more than noise in its last digits, nats per position."""
RISEN = 1.02
"""Held-out loss, as a multiple of its lowest, from which on a checkpoint has learned by heart."""
Log = Sequence[dict[str, float]]


def cautions(run: Run, results: ResultTable) -> list[str]:
    """Return the sentences that apply to a run."""
    found = [_undertrained(run), *_fine_tunings(run), _one_teacher(run), _one_sided(run), _by_heart(run)]
    found.append(forgotten(run))
    return [sentence for sentence in [*found, *_baselines(results)] if sentence]


def still_falling(log: Log) -> bool:
    """Say whether the last validation loss is the lowest, and clearly below the one before."""
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    return len(losses) > 1 and losses[-1] <= min(losses) and losses[-2] - losses[-1] > FALLING_NATS


def _undertrained(run: Run) -> str:
    names = _named([each for each in run.distilled if still_falling(each.log)])
    return names and (
        f"Undertrained: the validation loss of {names} was still falling at the end of training, so their order may "
        "be that of their speed; raise distill.epochs_per_stage."
    )


def _fine_tunings(run: Run) -> list[str]:
    told = {TEACHER: ("teacher", "sft.teacher"), STUDENT_SFT: ("student SFT", "sft.student")}
    return [
        f"The {name} is undertrained: its validation loss was still falling; raise {section}.num_train_epochs."
        for model, (name, section) in told.items()
        if still_falling(run.sft_logs.get(model, []))
    ]


def _one_teacher(run: Run) -> str:
    locked: dict[tuple[str, str], list[Distilled]] = {}
    for each in run.distilled:
        chosen, best = {stage.choice for stage in each.stages}, each.best or run.best
        if best and len(each.stages) > 1 and len(chosen) == 1 and all(len(stage.quality) > 1 for stage in each.stages):
            locked.setdefault((str(each.stages[0].choice), best), []).append(each)
    return " ".join(
        f"{_named(found)} chose {name} at every stage"
        + (_of_the_best(run, found) if name == best else _of_another(run, best, found))
        for (name, best), found in locked.items()
    )


def _of_the_best(run: Run, found: Sequence[Distilled]) -> str:
    """Say what a schedule was that named the best checkpoint alone, and what may make it another."""
    said = ", the best checkpoint, so it was td"
    if any(each.metric == "risk" for each in found):
        return said + ': by risk all that beat the student tie; compare by distill.schedule_metric = "kl".'
    said += ": the student had passed the earlier ones when it began"
    if setting(run.config, "distill", "init") in (None, "base"):
        return said + "."
    return said + '; start it earlier, distill.init = "base".'


def _of_another(run: Run, best: str, found: Sequence[Distilled]) -> str:
    """Say why a schedule may stay with a checkpoint that is not the best, and what moves it on (docs/results.md)."""
    moves = ["longer stages"]
    if not any(each.method.startswith("reach") for each in found):
        moves.insert(0, "reach, which compares by the other direction of the divergence")
    alpha = setting(run.config, "distill", "alpha")
    if isinstance(alpha, float) and alpha > 0.5:
        moves.append(f"a distill.alpha below {alpha:g}")
    return (
        f" and never came to {best}, the best one: a student comes nearer to whichever teaches it, and then names it "
        f"again; try {', or '.join(moves)}."
    )


def _one_sided(run: Run) -> str:
    said = []
    for each in run.distilled:
        weights = [entry["divergence_weight"] for entry in each.log if "divergence_weight" in entry]
        if each.method.endswith("aw") and weights and not WEIGHT_RANGE[0] <= np.mean(weights) <= WEIGHT_RANGE[1]:
            followed = "teacher" if np.mean(weights) > 0.5 else "labels"
            said.append(f"{each.method}, seed {each.seed}: {np.mean(weights):.2f}, all but the {followed} is ignored")
    return said and (  # type: ignore[return-value]
        f"Adaptive weights hardly adapt (mean w of {'; '.join(said)}): on training data they follow whichever model "
        'has memorised more; set distill.aw_source = "crossfit", or fine-tune both models alike.'
    )


def _by_heart(run: Run) -> str:
    """Compare the checkpoint with the lowest held-out loss with the last one."""
    cache = run.cache
    if cache is None or len(cache.checkpoints) < 2 or not cache.losses_known:
        return ""
    held_out = {name: loss for name, loss in cache.held_out.items() if loss is not None}
    last = cache.checkpoints[-1]
    if last not in held_out:
        return ""
    lowest = min(held_out, key=lambda name: held_out[name])
    training = {name: cache.losses[name].sum() / max(1, cache.n_positions) for name in (lowest, last)}
    if held_out[last] <= RISEN * held_out[lowest] or training[last] >= training[lowest]:
        return ""
    text = (
        f"The labels may be noisy: after {lowest} the teacher's held-out loss rose from {held_out[lowest]:.3f} to "
        f"{held_out[last]:.3f} nats a position while its training loss fell from {training[lowest]:.3f} to "
        f"{training[last]:.3f}, so it learned single examples by heart; fine-tune it for fewer epochs"
    )
    weighted = any(each.method.endswith("aw") for each in run.distilled)
    if weighted and setting(run.config, "distill", "aw_source") != "crossfit":
        return text + '. Adaptive weights then follow memorised errors; set distill.aw_source = "crossfit".'
    return text + "."


def _baselines(results: ResultTable) -> list[str]:
    return [
        f"{', '.join(below)} {'is' if len(below) == 1 else 'are'} not above a baseline on {task} (marked ○): a model "
        "that has learned nothing scores as much."
        for task in results.tasks
        if (below := [row.label for row in results.rows if task in row.cells and row.cells[task].at_baseline])
    ]


def _named(students: Sequence[Distilled]) -> str:
    """Name students by method, with their seeds where not all of a method's are meant."""
    seeds: dict[str, list[int]] = {}
    for each in students:
        seeds.setdefault(each.method, []).append(each.seed)
    return ", ".join(
        f"{method} ({'seed' if len(found) == 1 else 'seeds'} {', '.join(map(str, found))})"
        for method, found in seeds.items()
    )
