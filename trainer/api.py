"""The whole way in Python, for notebooks and other programs: the stages of `footsteps run`, a function each.

    run = new_run("runs/x", train=rows, test=rows, teacher=…, student=…)       or open_run("runs/x")
    fine_tune(run, "teacher") ─▶ build(run) ─▶ fine_tune(run, "student") ─▶ train(run, "scd+aw") ─▶ evaluate(run)

What is complete is not done again, and a run folder that was made here is one for the commands, and the other way
round. Rows and models that are only in memory are written below the run's folder first: what lies there decides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cache_builder.atomic import new_folder, write_text
from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.cache.reader import Cache, open_cache
from cache_builder.config import load_experiment, make_experiment, save_experiment
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError, MissingError
from cache_builder.models.loading import is_model_folder
from trainer.config import Experiment
from trainer.methods.methods import get_method
from trainer.report.page import write_report
from trainer.stages.distill import distill
from trainer.stages.evaluate_run import evaluate_run
from trainer.stages.sft import sft_student, sft_teacher
from trainer.stages.student_losses import load_on_device, write_student_losses

Rows = str | Sequence[Mapping[str, Any]]
"""A table's place as in `data.train`, or rows in any shape of docs/data.md."""
Model = str | PreTrainedModel
"""A folder or hub id, or a model in memory."""


@dataclass(frozen=True)
class Run:
    """A run folder with its settings; its examples are read and tokenised when they are first asked for."""

    experiment: Experiment

    @property
    def folder(self) -> Path:
        """Everything that is made lies below it."""
        return self.experiment.output_dir

    @cached_property
    def prepared(self) -> Prepared:
        """Examples by split, tokenizer and tokenised corpora."""
        return Prepared(self.experiment)

    @property
    def cache(self) -> Cache:
        """The cache as it is.

        Raises:
            MissingError, CacheIncompleteError: it has not been built.
        """
        return open_cache(self.experiment.cache_url, local_copy=self.experiment.local_copy)


def new_run(
    folder: str | Path,
    *,
    train: Rows,
    test: Rows,
    teacher: Model | Sequence[Model],
    student: Model,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    validation: Rows | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Run:
    """Make a run, or open it again with the same arguments.

    Args:
        teacher: one model, to be fine-tuned here; or several, its finished checkpoints, oldest first.
        tokenizer: the teacher's own unless given.
        settings: a config's sections, such as {"text": {"max_length": 64}, "teacher": {"checkpoints": 3}}.

    Raises:
        ConfigError: a setting does not fit, or is said twice.
    """
    folder = Path(folder)
    values: dict[str, Any] = {name: dict(section) for name, section in (settings or {}).items()}
    _set(values, "run", "output_dir", str(folder))
    for split, rows in (("train", train), ("test", test), ("validation", validation)):
        if rows is not None:
            _set(values, "data", split, rows if isinstance(rows, str) else _write_rows(folder, split, rows))
    if isinstance(teacher, Sequence) and not isinstance(teacher, str):
        if not teacher:
            raise ConfigError("teacher: an empty list; give one model, or its checkpoints, oldest first")
        places = [_place(folder, f"teacher-{index}", model) for index, model in enumerate(teacher)]
        _set(values, "teacher", "model", places[-1])
        _set(values, "teacher", "checkpoints", places)
    else:
        _set(values, "teacher", "model", _place(folder, "teacher", teacher))
    _set(values, "student", "model", _place(folder, "student", student))
    if tokenizer is not None:
        _set(
            values,
            "tokenizer",
            "path",
            tokenizer if isinstance(tokenizer, str) else _save(folder, "tokenizer", tokenizer),
        )
    experiment = make_experiment(Experiment, values, (), "the run's settings")
    save_experiment(experiment, folder / "config.toml")
    return Run(experiment)


def open_run(folder: str | Path) -> Run:
    """Open a run folder, made here or by a command.

    Raises:
        MissingError: it has no config.toml.
    """
    return Run(load_experiment(Experiment, Path(folder) / "config.toml"))


def fine_tune(run: Run, role: Literal["teacher", "student"]) -> Path:
    """Fine-tune the teacher, keeping its checkpoints, or the student, with its losses; return its folder.

    Raises:
        ConfigError: the teacher's checkpoints were given, so there is nothing to fine-tune.
    """
    if role == "student":
        folder = sft_student(run.experiment, run.prepared)
        write_student_losses(run.experiment, run.cache, run.prepared.tokenizer.pad_token_id)
        return folder
    if isinstance(run.experiment.teacher.checkpoints, list):
        raise ConfigError("the teacher's finished checkpoints were given, so there is no teacher to fine-tune")
    return sft_teacher(run.experiment, run.prepared)


def build(run: Run) -> Cache:
    """Run every checkpoint of the teacher over the training rows; return the cache.

    Raises:
        MissingError: the teacher has no checkpoints yet.
    """
    prepared = run.prepared
    checkpoints = teacher_checkpoints(run.experiment)
    build_cache(run.experiment, prepared.train, prepared.tokenizer, checkpoints, prepared.validation)
    return run.cache


def train(run: Run, method: str, seed: int = 0) -> Path:
    """Train a student from the cache; return its folder, of which `best` and `last` are models.

    Raises:
        ConfigError: there is no such method.
        MissingError: adaptive weighting needs the student's losses, which `fine_tune(run, "student")` writes.
    """
    return distill(run.experiment, method, seed, run.cache, run.prepared)


def load_student(run: Run, method: str, seed: int = 0, which: Literal["best", "last"] = "best") -> PreTrainedModel:
    """Return a trained student, in eval mode, on this process's device.

    Raises:
        ConfigError: there is no such method, or `which` is neither "best" nor "last".
        MissingError: it has not been trained.
        CacheDamagedError: a file of it is not as it was saved.
    """
    if which not in ("best", "last"):
        raise ConfigError(f'which = {which!r}: expected "best" or "last"')
    folder = run.folder / "distill" / get_method(method).name / f"seed-{seed}" / which
    if not is_model_folder(folder):
        raise MissingError(f"{folder} holds no student; train(run, {method!r}, {seed}) trains it")
    return load_on_device(run.experiment.student.model_copy(update={"model": str(folder)}), run.experiment.run.seed)


def evaluate(run: Run) -> dict[str, dict[str, Any]]:
    """Judge the teacher, the student SFT and every student of the settings' methods on the test rows.

    Returns:
        what each model's metrics.json holds, by its name below `evaluate/`, such as "td/seed-0/best".
    """
    evaluate_run(run.experiment, run.prepared, run.cache, Console(quiet=True))
    below = run.folder / "evaluate"
    files = sorted(below.rglob("metrics.json"))
    return {path.parent.relative_to(below).as_posix(): json.loads(path.read_bytes()) for path in files}


def report(run: Run) -> Path:
    """Write the report as far as the run has come; return the path of its page."""
    return write_report([run.folder], None, remote=True)  # the run is the user's own


def _set(values: dict[str, Any], section: str, key: str, value: Any) -> None:
    if key in values.setdefault(section, {}):
        raise ConfigError(f"{section}.{key} is said twice, as an argument and in `settings`; give one")
    values[section][key] = value


def _write_rows(folder: Path, split: str, rows: Sequence[Mapping[str, Any]]) -> str:
    path = folder / "rows" / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return str(path)


def _place(folder: Path, name: str, model: Model) -> str:
    return model if isinstance(model, str) else _save(folder, name, model)


def _save(folder: Path, name: str, what: PreTrainedModel | PreTrainedTokenizerBase) -> str:
    path = folder / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(path) as part:
        what.save_pretrained(part)
    return str(path)
