"""FLOP/s of one GPU: as the user gives it, or as the stages of this run that are done have reached it.

    forward      operations of a position × positions / seconds        build/<checkpoint>/*.json, all builders together
    training     operations of a sequence × sequences / seconds        log.json of the students, else of a fine-tuning

No peak of a data sheet and no assumed share of it: on another machine or at other sizes, give your own.
"""

from dataclasses import dataclass
from pathlib import Path

from cache_builder.build.costs import read_costs
from trainer.config import TrainingConfig
from trainer.planning.model_size import ModelSize
from trainer.planning.plan import FORWARD, TRAINING, Plan
from trainer.report.run.run_files import read_json, read_log


@dataclass(frozen=True)
class Rate:
    """FLOP/s that one GPU, or this CPU, reaches."""

    flops_per_second: float
    source: str


def given_rates(flops_per_second: float) -> dict[str, Rate]:
    """Return one rate for everything."""
    return dict.fromkeys((FORWARD, TRAINING), Rate(flops_per_second, "given"))


def measured_rates(plan: Plan) -> dict[str, Rate]:
    """Return what the run folder has measured; left out is what has not begun, or whose model has no known size."""
    folder, rates = plan.experiment.output_dir, {}
    notes = [note for note in read_costs(folder)[0] if note.positions and note.seconds]
    if notes and plan.teacher.parameters:
        flops = plan.build_flops() / (plan.checkpoints * plan.corpus.positions)
        per_second = sum(note.positions for note in notes) / sum(note.seconds for note in notes)
        rates[FORWARD] = Rate(flops * per_second, f"measured: building this cache on {notes[-1].device}")
    sft, distill = plan.experiment.sft, plan.experiment.distill
    trainings: list[tuple[str, ModelSize, TrainingConfig]] = [("distill/*/seed-*", plan.student, distill)]
    trainings += [("student", plan.student, sft.student), ("teacher", plan.teacher, sft.teacher)]
    for pattern, model, config in trainings:
        found = [rate for path in sorted(folder.glob(f"{pattern}/log.json")) if (rate := _sequences(path, config))]
        if found and model.parameters:
            # the seconds are those of steps and held-out losses: two epochs less one leave out what is done once
            flops = (
                plan.training_flops(model, config, 2) - plan.training_flops(model, config, 1)
            ) / plan.corpus.sequences
            rates[TRAINING] = Rate(flops * sum(found) / len(found), f"measured: {len(found)} × {pattern}")
            break
    return rates


def _sequences(log: Path, config: TrainingConfig) -> float | None:
    """Return the sequences per second of one process of a finished training."""
    entries = read_log(log, [], "")
    started = read_json(log.with_name("inputs.json"), [], "")
    try:
        last = next(entry for entry in reversed(entries) if "train_samples_per_second" in entry)
        in_one = config.per_device_train_batch_size * config.gradient_accumulation_steps
        return last["train_samples_per_second"] / max(1.0, started["training"]["sequences_per_step"] / in_one)
    except (StopIteration, TypeError, KeyError):
        return None
