"""Tasks of lm-evaluation-harness on a loaded model: what `[evaluate] harness` names.

name ─▶ a task, group or tag of the harness ─▶ its tasks, each run by the harness ─▶ metrics, and a score for each row

The metrics are the harness's, unchanged. Rows keep a score where the mean of them is the primary metric, the first that
the task names, so that models can be compared row by row.
"""

import difflib
import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cache_builder.config import expand
from cache_builder.data.digests import sha256_of
from cache_builder.errors import ConfigError
from trainer.evaluation.eval_mode import in_eval_mode
from trainer.evaluation.generation import ALONE
from trainer.evaluation.statistics import interval
from trainer.evaluation.tasks import EvaluateConfig

PACKAGE = "lm_eval"


def check_harness(settings: EvaluateConfig) -> None:
    """Refuse, before anything is trained, tasks that could not be run.

    Raises:
        ConfigError: the package is not there, or knows no task of that name.
    """
    if not settings.harness:
        return
    if find_spec(PACKAGE) is None:
        raise ConfigError(
            f"evaluate.harness = {settings.harness} needs lm-evaluation-harness (lm_eval), which is not installed; "
            'pip install "footsteps[harness]", or leave `harness` out'
        )
    _manager(settings)


def describe_harness(settings: EvaluateConfig) -> dict[str, Any]:
    """Return everything that a result depends on beside the model and the task's name."""
    return {
        "lm_eval": version(PACKAGE),
        "limit": settings.harness_limit,
        "chat_template": settings.harness_chat_template,
        "own_tasks": _own_files(settings.harness_path),
        "bootstrap_samples": settings.bootstrap_samples,
    }


def run_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, settings: EvaluateConfig
) -> dict[str, Any]:
    """Run one of the harness's names on a model, and return its tasks' metrics and their rows' scores.

    `{"tasks": {task: {"rows", "primary", "higher_is_better", "metrics": {metric: {"value", "low", "high"}}}},
    "scores": {task: {row: score}}}`; a metric whose rows have no scores has a value alone.

    Raises:
        ConfigError: the task cannot be loaded, or is one that the harness runs on no text or with the model's own code.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _no_notes(logging.WARNING):
        tasks = _load(name, settings)
    with in_eval_mode(model), _no_notes(logging.WARNING):
        with _no_notes(logging.ERROR):  # that a loaded model is none by name, which is meant
            batch_size = 1 if model.config.model_type in ALONE else settings.batch_size
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        found = simple_evaluate(
            wrapped,
            tasks=list(tasks.values()),
            task_manager=_manager(settings),
            limit=settings.harness_limit,
            apply_chat_template=settings.harness_chat_template,
            bootstrap_iters=0,
        )
    results: dict[str, Any] = {}
    scores: dict[str, dict[str, float]] = {}
    for task in tasks:
        values, rows = found["results"][task], found["samples"][task]
        higher = found["higher_is_better"][task]
        metrics: dict[str, dict[str, float]] = {}
        primary = None
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            shown = metric if chosen == "none" else f"{metric} ({chosen})"
            of_rows = _row_scores(rows, metric, chosen, float(value))
            metrics[shown] = _with_interval(float(value), list(of_rows.values()), settings.bootstrap_samples)
            if primary is None:
                primary = shown, higher.get(metric) is not False
                scores |= {task: of_rows} if of_rows else {}
        if primary is None:
            raise ConfigError(f"evaluate.harness: {task!r} of {name!r} gave no number; it cannot be compared")
        results[task] = {
            "rows": len({row["doc_id"] for row in rows}),
            "primary": primary[0],
            "higher_is_better": primary[1],
            "metrics": metrics,
        }
    return {"tasks": results, "scores": scores}


def _row_scores(rows: Sequence[dict[str, Any]], metric: str, chosen: str, value: float) -> dict[str, float]:
    """Return each row's score, where their mean is the metric's value; else nothing."""
    found = {str(row["doc_id"]): row.get(metric) for row in rows if row["filter"] == chosen}
    if not all(isinstance(score, int | float | np.number) for score in found.values()):
        return {}
    scores = {row: float(score) for row, score in found.items()}  # type: ignore[arg-type]
    return scores if scores and math.isclose(np.mean(list(scores.values())), value, rel_tol=1e-9) else {}


def _with_interval(value: float, scores: Sequence[float], samples: int) -> dict[str, float]:
    if not scores:
        return {"value": value}
    of_rows = np.array(scores)
    low, high = interval(lambda rows: float(of_rows[rows].mean()), len(of_rows), samples)
    return {"value": value, "low": low, "high": high}


def _load(name: str, settings: EvaluateConfig) -> dict[str, Any]:
    """Return the tasks that a name stands for, with their data.

    Raises:
        ConfigError: see `run_harness`.
    """
    try:
        tasks: dict[str, Any] = _manager(settings).load([name])["tasks"]
    except Exception as error:  # a task's own file, data or code, of which anything may be wrong
        raise ConfigError(
            f"evaluate.harness: task {name!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    for task, loaded in tasks.items():
        if getattr(loaded, "UNSAFE_CODE", False):
            raise ConfigError(f"evaluate.harness: task {task!r} runs code that a model writes, which is not done here")
        if getattr(loaded, "MULTIMODAL", False):
            raise ConfigError(f"evaluate.harness: task {task!r} has more than text, which these models do not read")
    return tasks


def _manager(settings: EvaluateConfig) -> Any:
    """Return the harness's index of tasks, which has all those named.

    Raises:
        ConfigError: it has not, or the folder is not there.
    """
    folder = None if settings.harness_path is None else Path(expand(settings.harness_path))
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"evaluate.harness_path: {folder} is not a folder; name the one that holds your tasks' YAML")
    names = tuple(settings.harness)
    manager = _index(folder, False) if folder is not None else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = _index(folder, True)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 1)
            where = "" if folder is None else f" and {folder}"
            raise ConfigError(
                f"evaluate.harness: {name!r} is no task, group or tag of lm_eval {version(PACKAGE)}{where}"
                + (f"; did you mean {near[0]!r}?" if near else "; put the folder of its YAML into harness_path")
            )
    return manager


@cache
def _index(folder: Path | None, include_defaults: bool) -> Any:
    """Read the names of all tasks; the harness's own take it some seconds."""
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(include_path=None if folder is None else str(folder), include_defaults=include_defaults)
    except Exception as error:  # a YAML file of the user's
        raise ConfigError(f"evaluate.harness_path: {folder} cannot be read: {type(error).__name__}: {error}") from error


def _own_files(path: str | None) -> str | None:
    """Return a digest of everything in the folder of own tasks: their YAML, their functions, their data."""
    if path is None:
        return None
    folder, digest = Path(expand(path)), hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


@contextmanager
def _no_notes(level: int) -> Iterator[None]:
    """Keep what the harness says below a level out of what we say."""
    logger = logging.getLogger(PACKAGE)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
