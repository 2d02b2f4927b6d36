"""What chooses the best state of a student's training: the loss on validation data, or its tasks' own metric."""

from pathlib import Path
from typing import Any

from cache_builder.data.digests import files_in, sha256_of
from cache_builder.data.prepare import Prepared
from cache_builder.models.loading import is_model_folder
from cache_builder.steps import STARTED_FILE
from trainer.config import Experiment, Selection
from trainer.evaluation.selection import ValidationTasks, validation_tasks
from trainer.loop.state import TrainState


def selection(experiment: Experiment, prepared: Prepared, select_by: Selection) -> ValidationTasks | None:
    """Return how states are judged; None where the loss decides.

    Raises:
        ConfigError: nothing is held out.
        DataError: a validation row cannot be judged.
    """
    if select_by == "loss":
        return None
    return validation_tasks(
        prepared.tokenizer,
        prepared.examples["validation"],
        experiment.data.source,
        experiment.tasks,
        experiment.evaluate,
        experiment.text,
    )


def check_selections(experiment: Experiment, prepared: Prepared) -> None:
    """Refuse, before anything is trained, what no state could be chosen by.

    Raises:
        ConfigError, DataError: see `selection`.
    """
    asked: set[Selection] = {experiment.distill.select_by, experiment.sft.student.select_by}
    if experiment.distill.best == "metric":
        asked.add("metric")
    for select_by in asked:
        selection(experiment, prepared, select_by)


def training_result(folder: Path, steps: int, saved: TrainState) -> dict[str, Any]:
    """Return what a finished training's stage.json has of it: its best state, and the digests of what it leaves."""
    result = {"steps": steps, "best_step": saved.best_step, "best_loss": saved.best_loss, "files": _files_of(folder)}
    return result if saved.best_metric is None else {**result, "best_metric": saved.best_metric}


def _files_of(folder: Path) -> dict[str, str]:
    """Return the digests of a training's models and records; not of model cards, which are written again and again."""
    files = {path.name: sha256_of(path) for path in sorted(folder.glob("*.json")) if path.name != STARTED_FILE}
    for model in sorted(path for path in folder.iterdir() if is_model_folder(path)):
        files |= {f"{model.name}/{name}": digest for name, digest in files_in(model, leave_out=["README.md"]).items()}
    return files
