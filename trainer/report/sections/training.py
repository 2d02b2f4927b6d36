"""The report's training curves, and the teacher's checkpoints with their cache."""

from trainer.report.parts import Figured, Section, absent, extended, first_per_name, first_seeds
from trainer.report.plots import training as plots_training
from trainer.report.plots.style import render
from trainer.report.run.cache_view import CacheView
from trainer.report.run.records import Distilled, Run
from trainer.report.tables import DataTable, Record

TRAINING_QUANTITIES = {
    "learning_rate": "learning rate, no unit",
    "grad_norm": "gradient norm, no unit",
    "divergence_weight": "mean weight w, no unit",
    "taid_t": "TAID's t, no unit",
    "tail_lambda": "the draws' share of the tail, λ, no unit",
    "kl": "divergence, nats",
    "ce": "cross-entropy, nats",
}


def training_section(run: Run) -> Section:
    section = Section(
        "training",
        "Training",
        "Training",
        "Grey bands are every other stage: at each border the teacher may change, and optimizer and learning rate "
        "start again. Losses of different divergences are not comparable between methods; their shapes are.",
    )
    logged = [d for d in run.distilled if d.log]
    first = first_per_name((d.method, d) for d in logged)
    if not first:
        return absent(section, "No method has left a training log.")
    curves = {name: (d.log, _first_steps(d)) for name, d in first.items()}
    figures = [
        Figured(
            render("training-loss", lambda width: plots_training.training_losses(curves, width)),
            "Training and validation loss over steps, one panel per method",
            "Training: the loss as logged, its divergence included. Validation: cross-entropy of the true tokens, nats "
            "per position, where it was evaluated. A rise right after a border is the fresh optimizer and the new "
            f"teacher.{first_seeds(logged)}",
        )
    ]
    logs = {name: d.log for name, d in first.items()}
    quantities = {
        key: label
        for key, label in TRAINING_QUANTITIES.items()
        if any(len(plots_training.logged(log, key)[0]) for log in logs.values())
    }
    if quantities:
        figures.append(
            Figured(
                render("training-curves", lambda width: plots_training.curves(logs, quantities, width)),
                "Learning rate, TAID's t, mean weight and gradient norm over steps",
                "What else was logged: " + ", ".join(label.partition(",")[0] for label in quantities.values()) + ". "
                "Where more than six methods differ, each is a strip whose color is the value." + first_seeds(logged),
            )
        )
    rows: list[Record] = [{"method": d.method, "seed": d.seed, **entry} for d in logged for entry in d.log]
    table = DataTable("training_log", "The training log", rows, shown=False)
    return extended(section, *figures, tables=[table])


def cache_section(run: Run) -> Section:
    section = Section(
        "cache",
        "Cache",
        "The teacher's checkpoints and their cache",
        "Held-out loss tells how far the teacher had come; retained mass is the probability that the stored ids "
        "hold, the rest being the tail.",
    )
    if run.cache is None:
        return absent(section, "There is no readable cache.")
    cache = run.cache
    rows: list[Record] = [
        {
            "checkpoint": name,
            "step": run.teacher_steps.get(name),
            "held-out loss, nats per position": cache.held_out[name],
            "training loss, nats per position": _per_position(cache, name),
            "retained mass, %": None if (retained := cache.retained[name]) is None else 100 * retained,
            "bytes": cache.bytes[name],
            "bytes per position": cache.bytes[name] / cache.n_positions,
        }
        for name in cache.checkpoints
    ]
    return extended(section, tables=[DataTable("cache", "Checkpoints", rows, unfolded=True)])


def _per_position(cache: CacheView, name: str) -> float | None:
    return float(cache.losses[name].sum() / max(cache.n_positions, 1)) if cache.losses_known else None


def _first_steps(distilled: Distilled) -> list[int]:
    return [stage.first_step for stage in distilled.stages]
