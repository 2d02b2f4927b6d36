"""The losses that adaptive weighting compares, and how to take them on data that a model has not seen.

aw_source = "train"      L_S of the student SFT, L_T of the cache: both on their own training data
aw_source = "crossfit"   training rows ─▶ two halves, by the seed
                         fine-tuned on half 0 ─▶ judged on half 1      for the student, and for each checkpoint of a
                         fine-tuned on half 1 ─▶ judged on half 0      teacher that we fine-tune ourselves

crossfit/<role>/half-<h>/            a fine-tuning stage; its weights are removed once its losses are taken
crossfit/<role>/losses/<name>.safetensors    "loss" f64 [n]; `name` is "student", or the cache's checkpoint

A teacher given as finished checkpoints cannot be trained on halves: its L_T stays the cache's, on data that it may have
memorised, which leans the weights to the teacher; a warning says so.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from cache_builder.cache.reader import Cache
from cache_builder.config import ModelConfig
from cache_builder.data.batches import Batching
from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheMismatchError
from cache_builder.sequences import SomeRows
from cache_builder.steps import STARTED_FILE, finish_stage, stage_result
from trainer.config import Experiment
from trainer.losses_file import read_losses, write_losses
from trainer.methods.methods import get_method
from trainer.methods.weighting import WEIGHTINGS
from trainer.processes import on_main_process, only_run_in
from trainer.stages.sft import Role, fine_tune
from trainer.stages.student_losses import load_on_device, losses_of


@dataclass(frozen=True)
class AwLosses:
    """L_S and L_T of every training sequence, nats."""

    student_N: np.ndarray
    teacher: Callable[[str], np.ndarray]
    """By checkpoint, f64 [N]."""


def needs_crossfit(experiment: Experiment) -> bool:
    """Say whether a method of the experiment weighs by cross-fitted losses."""
    weighted = any(WEIGHTINGS[get_method(name).weighting].adaptive for name in experiment.distill.methods)
    return weighted and experiment.distill.aw_source == "crossfit"


def halves(sequences: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the rows at random into two halves, each rising i64."""
    order = np.random.default_rng([seed, 0xC055F17]).permutation(sequences)
    return np.sort(order[: sequences // 2]), np.sort(order[sequences // 2 :])


def write_crossfit_losses(experiment: Experiment, prepared: Prepared, cache: Cache) -> Path:
    """Fine-tune on halves, judge on the other halves, and return the folder of all that.

    Raises:
        CacheMismatchError: the cache is imported: its sequences are not the experiment's.
    """
    if cache.manifest.imported is not None:
        raise CacheMismatchError(
            f"cache {cache.url} was imported: its teacher is not there to be cross-fitted; "
            'set distill.aw_source = "train"'
        )
    folder = experiment.output_dir / "crossfit"
    with only_run_in(folder, "cross-fitting here"):  # one that judges removes the halves' models
        _crossfit(experiment, prepared, cache, "student")
        if isinstance(experiment.teacher.checkpoints, int):
            _crossfit(experiment, prepared, cache, "teacher")
        else:
            on_main_process(_warn_of_the_teacher)
    return folder


def read_aw_losses(experiment: Experiment, cache: Cache) -> AwLosses:
    """Return the losses that `distill.aw_source` names.

    Raises:
        MissingError: they have not been computed.
        CacheMismatchError: they were computed for another cache.
        CacheDamagedError: a file of them is damaged.
    """

    def losses(path: Path) -> np.ndarray:
        return read_losses(path, cache.fingerprint, cache.manifest.corpus.sequences)

    if experiment.distill.aw_source == "train":
        return AwLosses(losses(experiment.output_dir / "losses" / "student.safetensors"), cache.losses)
    student_N = losses(_losses_file(experiment, "student", "student"))
    if isinstance(experiment.teacher.checkpoints, int):
        return AwLosses(student_N, lambda name: losses(_losses_file(experiment, "teacher", name)))
    return AwLosses(student_N, cache.losses)


def _crossfit(experiment: Experiment, prepared: Prepared, cache: Cache, role: Role) -> None:
    parts = halves(len(prepared.train), experiment.run.seed)
    folders = [experiment.output_dir / "crossfit" / role / f"half-{half}" for half in (0, 1)]
    for folder, rows in zip(folders, parts, strict=True):
        fine_tune(experiment, prepared, role, folder, rows)
    on_main_process(lambda: _judge(experiment, prepared, cache, role, folders, parts))


def _judge(
    experiment: Experiment,
    prepared: Prepared,
    cache: Cache,
    role: Role,
    folders: list[Path],
    parts: tuple[np.ndarray, np.ndarray],
) -> None:
    """Judge each half's models on the other half's rows."""
    names = ("student",) if role == "student" else cache.checkpoints
    losses_folder = _losses_file(experiment, role, names[0]).parent
    trained = [(folder / STARTED_FILE).read_text(encoding="utf-8") for folder in folders]
    if stage_result(losses_folder, {"cache": cache.fingerprint, "trained": trained}) is None:
        model_config: ModelConfig = experiment.student if role == "student" else experiment.teacher
        batching = Batching(prepared.tokenizer.pad_token_id, getattr(experiment.sft, role).eval_batch_tokens)
        for number, name in enumerate(names):
            losses_N = np.zeros(len(cache.corpus))
            for folder, unseen in zip(folders, reversed(parts), strict=True):
                location = folder / "best" if role == "student" else _checkpoints(folder)[number]
                model = load_on_device(model_config.model_copy(update={"model": str(location)}), experiment.run.seed)
                rows = SomeRows(cache.corpus, unseen)
                losses_N[unseen] = losses_of(model, rows, cache.manifest.tokenizer.size, batching)
            write_losses(_losses_file(experiment, role, name), losses_N, cache.fingerprint)
        finish_stage(losses_folder, {})
    for folder in folders:
        for child in folder.iterdir():
            if child.is_dir():
                shutil.rmtree(child)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def _losses_file(experiment: Experiment, role: Role, name: str) -> Path:
    return experiment.output_dir / "crossfit" / role / "losses" / f"{name}.safetensors"


def _warn_of_the_teacher() -> None:
    Console(stderr=True).print(
        '[yellow]warning:[/] distill.aw_source = "crossfit": the teacher is given as finished checkpoints, so L_T is '
        "the cache's, on data that the teacher may have trained on; the weights lean to the teacher",
        highlight=False,
        soft_wrap=True,
    )
