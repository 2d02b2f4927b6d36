"""Evaluate everything that a run has: the teacher's best checkpoint, the student SFT, and every finished student.

evaluate/<model>/   metrics.json, predictions.jsonl; inputs.json says for which weights and settings, and their digests
                    harness/<name>.json, where `[evaluate] harness` names tasks of others
evaluate/base/      the student before training, where it does
"""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from cache_builder.atomic import write_json
from cache_builder.build.build import teacher_checkpoints
from cache_builder.cache.reader import Cache
from cache_builder.config import ModelConfig
from cache_builder.data.digests import check_files, sha256_of
from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheDamagedError, DataError
from cache_builder.models.loading import weights_fingerprint
from cache_builder.narration import say
from cache_builder.steps import STAGE_FILE, STARTED_FILE, read_record, write_record
from trainer.config import Experiment
from trainer.evaluation.evaluate import evaluate_model
from trainer.evaluation.harness_tasks import check_harness, describe_harness, run_harness
from trainer.evaluation.tasks import resolve_tasks
from trainer.processes import on_main_process, only_run_in
from trainer.report.model_card import write_model_cards
from trainer.report.run.records import BASE, TEACHER_BASE
from trainer.stages.best_teacher import best_teacher
from trainer.stages.shrink import student_at_start
from trainer.stages.student_losses import load_on_device, student_sft_folder

EVALUATION_VERSION = 2
"""Of what metrics.json and predictions.jsonl hold; what an older one wrote is evaluated again. 1 had no baselines and
no metrics over all entities."""
HARNESS_VERSION = 1
"""Of what harness/<name>.json holds."""


RESULTS = ("metrics.json", "predictions.jsonl")


@dataclass(frozen=True)
class RunModel:
    """One model to evaluate; `name` is its folder below evaluate/."""

    name: str
    model: ModelConfig
    method: str
    seed: int | None = None
    which: str | None = None


def models_of(experiment: Experiment, prepared: Prepared, best: str | None) -> Iterator[RunModel]:
    """Yield the teacher's checkpoint `best`, the student SFT, and best and last of every finished student.

    The student before training comes first where there are tasks of the harness: what is gained or lost is gained or
    lost against it. `evaluate.base` asks for it and for the teacher's model before its fine-tuning.
    """
    if experiment.evaluate.harness or experiment.evaluate.base:
        yield RunModel(BASE, student_at_start(experiment, prepared), BASE)
    if best is not None and experiment.evaluate.base:
        yield RunModel(TEACHER_BASE, experiment.teacher, TEACHER_BASE)
    if best is not None:
        yield RunModel("teacher", _at(experiment.teacher, dict(teacher_checkpoints(experiment))[best]), "teacher")
    yield RunModel("student_sft", _at(experiment.student, str(student_sft_folder(experiment))), "student_sft")
    for method in experiment.distill.methods:
        for seed in experiment.distill.seeds:
            folder = experiment.output_dir / "distill" / method / f"seed-{seed}"
            for which in ("best", "last") if (folder / STAGE_FILE).is_file() else ():
                model = _at(experiment.student, str(folder / which))
                yield RunModel(f"{method}/seed-{seed}/{which}", model, method, seed, which)


def evaluate_run(experiment: Experiment, prepared: Prepared, cache: Cache, console: Console) -> None:
    """Evaluate each model on the test examples, unless that was done for the same weights and settings.

    Every distilled student's folder gets a card that says what it is and how it scored.

    Raises:
        ConfigError: `evaluate.harness` names what cannot be run.
        DataError: there is nothing to judge, neither test examples nor tasks of the harness.
    """
    check_harness(experiment.evaluate)
    if not len(prepared.examples["test"]) and not experiment.evaluate.harness:
        raise DataError("there are no test examples to evaluate on; give data.test, or tasks in evaluate.harness")
    # The teacher of an imported cache is not there to be evaluated.
    best = None if cache.manifest.imported is not None else best_teacher(experiment, prepared, cache)

    def evaluate() -> None:
        with only_run_in(experiment.output_dir / "evaluate", "evaluating this run"):
            _evaluate_run(experiment, prepared, list(models_of(experiment, prepared, best)), console)

    on_main_process(evaluate)


def _evaluate_run(experiment: Experiment, prepared: Prepared, models: list[RunModel], console: Console) -> None:
    tasks = resolve_tasks(prepared.examples["test"], experiment.data.source, experiment.tasks)
    known: dict[str, str] = {}
    for one in models:
        folder = experiment.output_dir / "evaluate" / one.name
        weights = weights_fingerprint(one.model.model, experiment.run.seed)
        inputs = {
            "version": EVALUATION_VERSION,
            "weights": weights,
            "evaluate": experiment.evaluate.own_tasks(),
            "tasks": {name: config.model_dump() for name, config in experiment.tasks.items()},
            "data": experiment.data.model_dump(),
            "text": experiment.text.model_dump(),
        }
        load = functools.cache(functools.partial(load_on_device, one.model, experiment.run.seed))
        if tasks and not _is_done(folder, inputs):
            (folder / STARTED_FILE).unlink(missing_ok=True)
            if weights in known:  # the best student is often the last one
                _copy(experiment, known[weights], one)
            else:
                evaluate_model(
                    load(),
                    prepared.tokenizer,
                    prepared.examples["test"],
                    tasks,
                    experiment.evaluate,
                    experiment.output_dir,
                    one.name,
                    text=experiment.text,
                    method=one.method,
                    seed=one.seed,
                    which=one.which,
                    console=console,
                )
            files = {name: sha256_of(folder / name) for name in RESULTS}
            write_record(folder / STARTED_FILE, {**inputs, "files": files})
            say("evaluated", f"{one.name}: judged", name=one.name, folder=str(folder))
        else:
            say("skipped", f"{one.name}: judged already with these weights and settings; skipped", name=one.name)
        known[weights] = one.name
        if one.which != "last":
            _run_harness(experiment, prepared, one, weights, load, console)
    write_model_cards(experiment.output_dir, remote=True)  # the run is the user's own


def _run_harness(
    experiment: Experiment,
    prepared: Prepared,
    one: RunModel,
    weights: str,
    load: Callable[[], PreTrainedModel],
    console: Console,
) -> None:
    """Run what the harness has not run yet on these weights with these settings, a file each."""
    for name in experiment.evaluate.harness:
        path = experiment.output_dir / "evaluate" / one.name / "harness" / f"{name}.json"
        inputs = {"version": HARNESS_VERSION, "weights": weights, **describe_harness(experiment.evaluate)}
        if (_record(path) or {}).get("inputs") == inputs:
            continue
        console.print(f"evaluate {one.name}: {name}, by lm-evaluation-harness", soft_wrap=True)
        found = run_harness(load(), prepared.deployment.tokenizer, name, experiment.evaluate)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, {"name": name, "inputs": inputs, **found})


def _is_done(folder: Path, inputs: dict[str, Any]) -> bool:
    """Say whether a model was evaluated with these inputs, and what came of it is there as it was written."""
    recorded = _record(folder / STARTED_FILE) or {}
    files = recorded.pop("files", None)
    if recorded != json.loads(json.dumps(inputs)):
        return False
    if files is None:  # a record of before
        return _record(folder / "metrics.json") is not None
    try:
        check_files(folder, files, "the evaluation", "it is made again")
    except CacheDamagedError as error:
        _warn(error)
        return False
    return True


def _record(path: Path) -> dict[str, Any] | None:
    """Return a record; None where none is there, or, which is said, a damaged one."""
    try:
        return read_record(path)
    except FileNotFoundError:
        return None
    except CacheDamagedError as error:
        _warn(error)
        return None


def _warn(error: CacheDamagedError) -> None:
    Console(stderr=True).print(f"warning: {error}", markup=False, highlight=False, soft_wrap=True)


def _copy(experiment: Experiment, name: str, one: RunModel) -> None:
    source, folder = (experiment.output_dir / "evaluate" / each for each in (name, one.name))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "predictions.jsonl", folder / "predictions.jsonl")
    metrics = json.loads((source / "metrics.json").read_text(encoding="utf-8"))
    names = {"model": one.name, "method": one.method, "seed": one.seed, "which": one.which}
    write_json(folder / "metrics.json", {**metrics, **names})


def _at(model: ModelConfig, location: str) -> ModelConfig:
    return model.model_copy(update={"model": location})
