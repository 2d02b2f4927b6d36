"""Read a run folder into plain records, and say what is missing from it instead of failing.

    <run>/config.toml                          settings               -> Run.config
          cache/                               per-sequence losses    -> Run.cache (a CacheView)
          losses/student.safetensors           L_S before training    -> Run.student_losses
          distill/<method>/seed-<s>/           plan, log, losses      -> Run.distilled
          evaluate/<model>/metrics.json        scores and intervals   -> Run.evaluations
          crossfit/…/losses/                   what AW compared       -> Run.aw_losses
          build/, live_teacher.json            time and memory        -> Run.build_costs, Run.live_teachers

Only files are read: no model is loaded and nothing is recomputed. A part that is absent or unreadable is named in
`Run.missing`, and its field is None or empty.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache_builder.build.costs import read_costs
from cache_builder.errors import ConfigError, MissingError
from trainer.methods.schedules import StageChoice, best_checkpoint
from trainer.report.run.cache_view import CacheView, read_cache
from trainer.report.run.run_costs import LIVE_FILE, CheckpointCost, LiveTeacher, build_costs, first_line, read_live
from trainer.report.run.run_files import entries_of, read_config, read_json, read_losses, read_scores, setting, settings

TEACHER = "teacher"
STUDENT_SFT = "student_sft"


@dataclass(frozen=True)
class TaskResult:
    """What one model scored on one task; `metrics` maps a metric's name to value, low and high (a 95 % interval)."""

    rows: int
    unparsable: int
    primary: str
    metrics: dict[str, dict[str, float]]

    @property
    def value(self) -> float:
        return self.metrics[self.primary]["value"]

    @property
    def low(self) -> float:
        return self.metrics[self.primary].get("low", float("nan"))

    @property
    def high(self) -> float:
        return self.metrics[self.primary].get("high", float("nan"))


@dataclass(frozen=True)
class Evaluation:
    """One `metrics.json`: `method` is None for the teacher and the student SFT model, `which` is best or last."""

    model: str
    method: str | None
    seed: int | None
    which: str | None
    parameters: int | None
    tokens_per_second: float | None
    tasks: dict[str, TaskResult]
    scores: dict[str, dict[str, float]]
    """Task -> row id -> the row's score, for tests paired by row."""
    bytes: int | None = None
    """Of the parameters, as they were loaded."""
    seconds: float | None = None
    """What answering the test examples took."""
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> row id -> how much the row counts; 1 where it is not named."""


@dataclass(frozen=True)
class Distilled:
    """One method with one seed, as far as it got; `losses` are those of the finished student on the training set."""

    method: str
    seed: int
    folder: Path
    metric: str
    """What its schedule compared checkpoints by, `kl` or `risk`."""
    stages: list[StageChoice]
    log: list[dict[str, Any]]
    losses: np.ndarray | None
    best: str | None = None
    """The checkpoint that its plan calls the best: the final teacher."""


@dataclass(frozen=True)
class AwLosses:
    """The losses that adaptive weighting compared, where they are others than the student SFT's and the cache's."""

    student_N: np.ndarray
    teacher: dict[str, np.ndarray]
    """By checkpoint; empty where the teacher could not be trained on halves, and the cache's losses were taken."""


@dataclass(frozen=True)
class Run:
    folder: Path
    config: dict[str, Any]
    teacher_steps: dict[str, int]
    """Checkpoint -> optimizer step of the teacher's fine-tuning."""
    cache: CacheView | None
    student_losses: np.ndarray | None
    distilled: list[Distilled]
    evaluations: list[Evaluation]
    corpus_counts: dict[str, int]
    missing: list[str] = field(default_factory=list)
    sft_logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """`teacher` and `student_sft` -> the log of its fine-tuning, where there is one."""
    best: str | None = None
    """The checkpoint that stands for the teacher: the one that was evaluated, and that `td` learns from."""
    aw_losses: AwLosses | None = None
    build_costs: dict[str, CheckpointCost] = field(default_factory=dict)
    """Checkpoint -> what building its part of the cache took, as far as its builders left notes here."""
    live_teachers: list[LiveTeacher] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def evaluation(self, model: str) -> Evaluation | None:
        """Return the evaluation of `teacher`, `student_sft` or `<method>/seed-<s>/<which>`."""
        return next((e for e in self.evaluations if e.model == model), None)

    def methods(self) -> list[str]:
        """Name every method that was distilled or evaluated, in the config's order, then by name."""
        found = {d.method for d in self.distilled} | {e.method for e in self.evaluations if e.method}
        wanted = [m for m in _wanted_methods(self.config) if m in found]
        return wanted + sorted(found - set(wanted))


def read_run(folder: str | Path) -> Run:
    """Read everything that a report shows of the run in `folder`.

    Raises:
        MissingError: `folder` is not a run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingError(f"run {folder}: no such folder; give the `run.output_dir` of an experiment")
    parts = ("config.toml", "cache", "distill", "evaluate")
    if not any((folder / part).exists() for part in parts):
        raise MissingError(f"{folder} is not a run folder: it has none of {', '.join(parts)}")
    missing: list[str] = []
    config = read_config(folder / "config.toml", missing)
    teacher = read_json(folder / "teacher" / "checkpoints.json", missing, "the list of the teacher's checkpoints")
    cache = read_cache(folder, config, missing)
    student_losses = read_losses(folder / "losses" / "student.safetensors", missing, "losses of the student SFT model")
    found = [_read_distilled(path, missing) for path in sorted((folder / "distill").glob("*/seed-*"))]
    distilled = [part for part in found if part]
    evaluations = [
        evaluation
        for path in sorted((folder / "evaluate").rglob("metrics.json"))
        if (evaluation := _read_evaluation(path, folder / "evaluate", missing))
    ]
    wanted = _wanted_methods(config)
    notes, unreadable = read_costs(folder)
    missing.extend(unreadable)
    distilled.sort(key=lambda d: (wanted.index(d.method) if d.method in wanted else len(wanted), d.method, d.seed))
    run = Run(
        folder=folder,
        config=config,
        teacher_steps=_teacher_steps(teacher),
        cache=cache,
        student_losses=_fitting(student_losses, cache, "losses/student.safetensors", missing),
        distilled=[
            replace(d, losses=_fitting(d.losses, cache, f"{d.method}, seed {d.seed}: losses.safetensors", missing))
            for d in distilled
        ],
        evaluations=evaluations,
        corpus_counts=_read_counts(folder / "corpus" / "train" / "stage.json"),
        missing=missing,
        sft_logs={
            model: log
            for model, part in ((TEACHER, "teacher"), (STUDENT_SFT, "student"))
            if (log := entries_of(read_json(folder / part / "log.json", [], "")))
        },
        best=_best(config, cache, distilled),
        aw_losses=_read_crossfit(folder, config, cache, missing),
        build_costs=build_costs(notes, cache.fingerprint, cache.checkpoints) if cache else {},
        live_teachers=_read_live(folder, missing),
    )
    missing.extend(_unfinished(run))
    return run


def _unfinished(run: Run) -> list[str]:
    """Say which models that the config asks for have not been trained or judged."""
    notes: list[str] = []
    models = {e.model for e in run.evaluations}
    notes.extend(f"{model} has not been evaluated" for model in (TEACHER, STUDENT_SFT) if model not in models)
    seeds = _wanted_seeds(run.config)
    for method in dict.fromkeys([*_wanted_methods(run.config), *run.methods()]):
        for seed in seeds or sorted({d.seed for d in run.distilled if d.method == method}):
            trained = any(d.method == method and d.seed == seed for d in run.distilled)
            if f"{method}/seed-{seed}/best" not in models and f"{method}/seed-{seed}/last" not in models:
                state = "trained, not evaluated" if trained else "not trained"
                notes.append(f"{method}, seed {seed}: {state}")
    judged = {e.seed for e in run.evaluations if e.method}
    if len(judged) == 1:
        notes.append("one seed only: no spread over seeds can be given")
    for evaluation in run.evaluations:
        notes.extend(
            f"{evaluation.model}: task {task} has no labelled test rows"
            for task, result in evaluation.tasks.items()
            if not result.rows
        )
    return notes


def _read_distilled(folder: Path, missing: list[str]) -> Distilled | None:
    method, seed = folder.parent.name, folder.name.removeprefix("seed-")
    if not seed.isdigit():
        missing.append(f"distill/{method}/{folder.name}: not the folder of a seed")
        return None
    label = f"{method}, seed {seed}"
    losses = read_losses(folder / "losses.safetensors", missing, f"{label}: losses of the finished student")
    plan = read_json(folder / "plan.json", missing, f"{label}: the schedule")
    metric, stages = _read_plan(plan, missing, f"{label}: the schedule")
    best = plan.get("best") if isinstance(plan, dict) else None
    log = read_json(folder / "log.json", missing, f"{label}: the training log")
    return Distilled(method, int(seed), folder, metric, stages, entries_of(log), losses, best)


def _read_plan(plan: Any, missing: list[str], label: str) -> tuple[str, list[StageChoice]]:
    if plan is None:
        return "kl", []
    try:
        stages = [StageChoice.from_json(stage) for stage in plan["stages"]]
        for stage in stages:
            if stage.quality and not (stage.quality.keys() == stage.distance.keys() == stages[0].quality.keys()):
                raise KeyError(f"the terms of stage {stage.stage} are not of the same checkpoints")
            if stage.quality and stage.choice not in stage.quality:
                raise KeyError(f"the choice of stage {stage.stage} has no terms")
        return ("risk" if plan.get("metric") == "risk" else "kl"), stages
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        missing.append(f"{label}: plan.json cannot be used: {error!r}")
        return "kl", []


def _read_evaluation(path: Path, root: Path, missing: list[str]) -> Evaluation | None:
    values = read_json(path, missing, f"evaluation {path.parent.relative_to(root)}")
    if values is None:
        return None
    try:
        tasks = {
            name: TaskResult(
                rows=int(task["rows"]),
                unparsable=int(task.get("unparsable", 0)),
                primary=str(task["primary"]),
                metrics={
                    key: {part: float(value) for part, value in metric.items()}
                    for key, metric in task["metrics"].items()
                },
            )
            for name, task in values["tasks"].items()
        }
        for name, task in tasks.items():
            if task.rows and "value" not in task.metrics.get(task.primary, {}):
                raise KeyError(f"{name}.metrics.{task.primary}.value")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        missing.append(f"{path.relative_to(root.parent)} cannot be used: {error!r}")
        return None
    model = path.parent.relative_to(root).as_posix()
    method, seed, which = _model_parts(model)
    rows = read_scores(path.parent / "predictions.jsonl", missing)
    return Evaluation(
        model=model,
        method=method,
        seed=seed,
        which=which,
        parameters=values.get("parameters"),
        tokens_per_second=values.get("tokens_per_second"),
        tasks=tasks,
        scores=rows.score,
        weights=rows.weight,
        bytes=values.get("bytes"),
        seconds=values.get("seconds"),
    )


def _model_parts(model: str) -> tuple[str | None, int | None, str | None]:
    """Split `<method>/seed-<s>/<which>`; the teacher and the student SFT model have no parts."""
    match = re.fullmatch(r"([^/]+)/seed-(\d+)/([^/]+)", model)
    return (match[1], int(match[2]), match[3]) if match else (None, None, None)


def _fitting(losses: np.ndarray | None, cache: CacheView | None, label: str, missing: list[str]) -> np.ndarray | None:
    """Drop losses that are not of the cache's corpus: comparing them would pair different sequences."""
    if losses is None or cache is None or len(losses) == cache.n_sequences:
        return losses
    missing.append(f"{label} has {len(losses)} sequences, the cache {cache.n_sequences}: not compared")
    return None


def _best(config: dict[str, Any], cache: CacheView | None, distilled: list[Distilled]) -> str | None:
    """The best checkpoint as most plans have it; else by the settings, and where these cannot say, the last one."""
    if cache is None or not cache.checkpoints:
        return None
    named = Counter(d.best for d in distilled if d.best in cache.checkpoints)
    if named:
        return named.most_common(1)[0][0]
    try:
        return best_checkpoint(cache.checkpoints, cache.held_out, str(setting(config, "distill", "best") or "held_out"))
    except ConfigError:
        return cache.checkpoints[-1]


def _read_crossfit(
    folder: Path, config: dict[str, Any], cache: CacheView | None, missing: list[str]
) -> AwLosses | None:
    """Read the cross-fitted losses, where the settings ask for them; the teacher's are all there or none is taken."""
    if setting(config, "distill", "aw_source") != "crossfit" or cache is None:
        return None

    def losses(part: str, label: str) -> np.ndarray | None:
        return _fitting(read_losses(folder / "crossfit" / part, missing, label), cache, label, missing)

    student_N = losses("student/losses/student.safetensors", "cross-fitted losses of the student")
    if student_N is None:
        return None
    if not (folder / "crossfit" / "teacher").is_dir():
        return AwLosses(student_N, {})
    found = {
        name: losses_N
        for name in cache.checkpoints
        if (losses_N := losses(f"teacher/losses/{name}.safetensors", f"cross-fitted losses of {name}")) is not None
    }
    return AwLosses(student_N, found) if len(found) == len(cache.checkpoints) else None


def _read_live(folder: Path, missing: list[str]) -> list[LiveTeacher]:
    if not (folder / LIVE_FILE).is_file():
        return []
    try:
        return read_live(folder)
    except (OSError, ValueError) as error:
        missing.append(f"{LIVE_FILE} cannot be used: {first_line(error)}")
        return []


def _teacher_steps(checkpoints: Any) -> dict[str, int]:
    entries = checkpoints.get("checkpoints", []) if isinstance(checkpoints, dict) else []
    return {e["name"]: e["step"] for e in entries if isinstance(e, dict) and "name" in e and "step" in e}


def _read_counts(path: Path) -> dict[str, int]:
    counts = read_json(path, [], "") or {}
    return dict(counts.get("counts", {})) if isinstance(counts, dict) else {}


def _wanted_methods(config: dict[str, Any]) -> list[str]:
    return [str(method) for method in settings(config, "distill", "methods")]


def _wanted_seeds(config: dict[str, Any]) -> list[int]:
    return [seed for seed in settings(config, "distill", "seeds") if isinstance(seed, int)]
