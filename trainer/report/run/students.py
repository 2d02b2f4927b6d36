"""The distilled students of a run: who taught them, how they learned, and the losses that they and their weights have.

distill/<method>/seed-<s>/    plan.json  log.json  losses.safetensors       -> Distilled
crossfit/…/losses/            what adaptive weighting compared              -> AwLosses
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat, TypeAdapter

from cache_builder.errors import ConfigError
from trainer.methods.schedules import TERM_NAMES, StageChoice, best_checkpoint
from trainer.report.run.cache_view import CacheView
from trainer.report.run.records import SELECTED_BY, AwLosses, Distilled, wanted_methods
from trainer.report.run.run_files import UNUSABLE, first_line, plain_name, read_json, read_log, read_model_losses
from trainer.report.run.settings import setting

STAGE = TypeAdapter(StageChoice)
TERMS = TypeAdapter(list[FiniteFloat])
METRICS = TypeAdapter(dict[str, FiniteFloat])


@dataclass(frozen=True)
class Plan:
    """What a report takes from a `plan.json`."""

    metric: str
    stages: list[StageChoice]
    best: str | None
    selected_by: str | None = None


def read_students(folder: Path, config: dict[str, Any], cache: CacheView | None, missing: list[str]) -> list[Distilled]:
    """Return every method and seed that has a folder, in the config's order, then by name."""
    wanted = wanted_methods(config)
    found = [read_student(path, cache, missing) for path in sorted((folder / "distill").glob("*/seed-*"))]
    return sorted(
        (student for student in found if student),
        key=lambda d: (wanted.index(d.method) if d.method in wanted else len(wanted), d.method, d.seed),
    )


def read_student(folder: Path, cache: CacheView | None, missing: list[str]) -> Distilled | None:
    """Return one method with one seed, as far as it got."""
    method, seed = plain_name(folder.parent.name), folder.name.removeprefix("seed-")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 10):
        missing.append(f"distill/{method}/{plain_name(folder.name)}: not the folder of a seed")
        return None
    label = f"{method}, seed {seed}"
    what = f"{label}: losses of the finished student"
    losses_N = read_model_losses(folder / "losses.safetensors", cache, missing, what)
    plan = read_plan(folder / "plan.json", missing, f"{label}: the schedule")
    log = read_log(folder / "log.json", missing, f"{label}: the training log")
    return Distilled(
        method, int(seed), folder, plan.metric, plan.stages, log, losses_N, plan.best, _selected_by(plan, log)
    )


def _selected_by(plan: Plan, log: list[dict[str, float]]) -> str | None:
    """Return what chose the best state; a plan of before there was a choice went by loss, where that was measured."""
    return plan.selected_by or ("loss" if any("eval_loss" in entry for entry in log) else None)


def read_plan(path: Path, missing: list[str], label: str) -> Plan:
    """Return a student's schedule; one without stages where it cannot be used."""
    value = read_json(path, missing, label)
    if value is None:
        return Plan("kl", [], None)
    try:
        stages = [STAGE.validate_python(vars(StageChoice.from_json(stage))) for stage in value["stages"]]
        for stage in stages:
            if stage.quality and not (stage.quality.keys() == stage.distance.keys() == stages[0].quality.keys()):
                raise ValueError(f"the terms of stage {stage.stage} are not of the same checkpoints")
            if stage.quality and stage.choice not in stage.quality:
                raise ValueError(f"the choice of stage {stage.stage} has no terms")
            TERMS.validate_python([*stage.quality.values(), *stage.distance.values()])
        best = value.get("best")
        metric = value.get("metric") if value.get("metric") in TERM_NAMES else "kl"
        selected_by = str(value.get("selected_by"))
        chosen_by = selected_by if selected_by in SELECTED_BY else None
        return Plan(metric, stages, best if isinstance(best, str) else None, chosen_by)
    except UNUSABLE as error:
        missing.append(f"{label}: plan.json cannot be used: {first_line(error)}")
        return Plan("kl", [], None)


def read_aw_losses(
    folder: Path, config: dict[str, Any], cache: CacheView | None, missing: list[str]
) -> AwLosses | None:
    """Read the cross-fitted losses, where the settings ask for them; the teacher's are all there or none is taken."""
    if setting(config, "distill", "aw_source") != "crossfit" or cache is None:
        return None

    def losses(part: str, label: str) -> np.ndarray | None:
        return read_model_losses(folder / "crossfit" / part, cache, missing, label)

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


def best_of(
    folder: Path, config: dict[str, Any], cache: CacheView | None, distilled: Sequence[Distilled]
) -> str | None:
    """The best checkpoint as most plans have it; else by the settings, and where these cannot say, the last one."""
    if cache is None or not cache.checkpoints:
        return None
    named = Counter(d.best for d in distilled if d.best in cache.checkpoints)
    if named:
        return named.most_common(1)[0][0]
    judged = read_json(folder / "teacher-metric" / "stage.json", [], "")
    try:
        metrics = METRICS.validate_python(judged["metrics"]) if judged else None
        by = str(setting(config, "distill", "best") or "held_out")
        return best_checkpoint(cache.checkpoints, cache.held_out, by, metrics)
    except (ConfigError, *UNUSABLE):
        return cache.checkpoints[-1]
