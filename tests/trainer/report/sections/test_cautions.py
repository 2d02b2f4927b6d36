"""What a reader must know is said where it is so, and only there."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.run_folder import CHECKPOINTS, make_run
from trainer.report.results import result_table
from trainer.report.run.records import Baseline, Run
from trainer.report.run.run_reader import read_run
from trainer.report.sections.cautions import cautions, still_falling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which nothing has to be said."""
    folder = make_run(
        tmp_path_factory.mktemp("cautions") / "run", methods=("scd+aw",), seeds=(0, 1), tasks={"triage": "accuracy"}
    )
    for seed in (0, 1):
        path = folder / f"distill/scd+aw/seed-{seed}/log.json"
        log = json.loads(path.read_text())
        last = max(entry["step"] for entry in log if "eval_loss" in entry)
        for entry in log:
            if entry["step"] == last and "eval_loss" in entry:
                entry["eval_loss"] = 9.0
        path.write_text(json.dumps(log))
    return folder


@pytest.fixture
def run(folder: Path) -> Run:
    return read_run(folder)


def said(run: Run) -> list[str]:
    return cautions(run, result_table(run))


def edited(run: Run, change: Callable[[dict[str, float]], dict[str, float]]) -> Run:
    return replace(run, distilled=[replace(each, log=[change(entry) for entry in each.log]) for each in run.distilled])


def test_a_run_of_which_nothing_must_be_said_has_no_caution(run: Run) -> None:
    assert said(run) == []


def test_students_whose_validation_loss_still_falls_are_undertrained(run: Run) -> None:
    falling = edited(run, lambda entry: entry | ({"eval_loss": -entry["step"]} if "eval_loss" in entry else {}))
    (sentence,) = said(falling)
    assert sentence.startswith("Undertrained: the validation loss of scd+aw (seeds 0, 1) was still falling")
    assert "raise distill.epochs_per_stage" in sentence


def test_a_fine_tuning_whose_validation_loss_still_falls_is_undertrained(run: Run) -> None:
    falling = [{"step": 1.0, "eval_loss": 2.0}, {"step": 2.0, "eval_loss": 1.5}]
    (sentence,) = said(replace(run, sft_logs={"teacher": falling, "student_sft": falling[::-1]}))
    assert sentence.startswith("The teacher is undertrained") and "sft.teacher.num_train_epochs" in sentence


@pytest.mark.parametrize(
    ("losses", "falling"),
    [
        ([], False),
        ([1.0], False),
        ([2.0, 1.0], True),
        ([1.0, 2.0], False),
        ([1.0, 0.9999], False),
        ([1, 2, 1.5], False),
    ],
)
def test_falling_is_the_last_loss_clearly_below_all_others(losses: list[float], falling: bool) -> None:
    assert still_falling([{"step": i, "eval_loss": loss} for i, loss in enumerate(losses)]) == falling


def staying_with(run: Run, name: str, changes: dict[str, Any] | None = None, **settings: object) -> str:
    first, second = run.distilled
    assert len({stage.choice for stage in first.stages}) > 1
    stages = [replace(stage, choice=name) for stage in first.stages]
    locked = replace(first, stages=stages, **(changes or {}))
    (sentence,) = said(replace(run, distilled=[locked, second], config={"distill": settings}))
    assert sentence.startswith(f"{locked.method} (seed 0) chose {name} at every stage")
    return sentence


@pytest.mark.parametrize(
    ("changes", "settings", "advice"),
    [
        ({}, {"init": "sft"}, 'distill.init = "base"'),
        ({"metric": "risk"}, {"init": "base"}, 'distill.schedule_metric = "kl"'),
        ({}, {}, "it began."),
    ],
)
def test_a_schedule_that_names_the_best_checkpoint_throughout_is_td(
    run: Run, changes: dict[str, Any], settings: dict[str, str], advice: str
) -> None:
    sentence = staying_with(run, str(run.best), changes, **settings)
    assert "so it was td" in sentence and advice in sentence and "reach" not in sentence


def test_a_schedule_that_stays_with_an_earlier_checkpoint_is_not_td_and_says_what_moves_it(run: Run) -> None:
    assert run.best != CHECKPOINTS[0]
    sentence = staying_with(replace(run, cache=None, best=None), CHECKPOINTS[0], {"best": run.best}, alpha=0.75)
    assert f"never came to {run.best}" in sentence and "it was td" not in sentence
    assert "try reach" in sentence and "distill.alpha below 0.75" in sentence
    assert "distill.alpha" not in staying_with(run, CHECKPOINTS[0], alpha=0.5)
    assert "try longer stages" in staying_with(run, CHECKPOINTS[0], {"method": "reach"})


@pytest.mark.parametrize(("weight", "followed"), [(0.95, "teacher"), (0.04, "labels")])
def test_weights_whose_mean_leaves_the_middle_do_not_adapt(run: Run, weight: float, followed: str) -> None:
    (sentence,) = said(
        edited(run, lambda entry: entry | ({"divergence_weight": weight} if "divergence_weight" in entry else {}))
    )
    assert f"scd+aw, seed 1: {weight:.2f}, all but the {followed} is ignored" in sentence
    assert 'distill.aw_source = "crossfit"' in sentence


def test_a_teacher_that_learns_by_heart_is_named_and_what_that_does_to_adaptive_weights(run: Run) -> None:
    assert run.cache is not None
    names = run.cache.checkpoints
    held_out: dict[str, float | None] = dict(zip(names, (1.0, 0.8, 0.9, 1.1), strict=True))
    losses = {name: np.full(run.cache.n_sequences, 4.0 - i) for i, name in enumerate(names)}
    noisy = replace(run, cache=replace(run.cache, held_out=held_out, losses=losses))
    (sentence,) = said(noisy)
    assert sentence.startswith(f"The labels may be noisy: after {names[1]} the teacher's held-out loss rose from 0.800")
    assert sentence.endswith('Adaptive weights then follow memorised errors; set distill.aw_source = "crossfit".')
    crossfit = replace(noisy, config={"distill": {"aw_source": "crossfit"}})
    assert "memorised errors" not in said(crossfit)[0]
    flat = replace(run, cache=replace(run.cache, held_out=held_out, losses=dict.fromkeys(names, losses[names[0]])))
    assert said(flat) == []


def test_a_model_that_is_not_above_a_baseline_is_named(run: Run) -> None:
    teacher = run.evaluation("teacher")
    assert teacher is not None
    result = teacher.tasks["triage"]
    metrics = {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}}
    for low, count in ((-0.01, 1), (0.0, 1), (0.01, 0)):
        baselines = {"majority": Baseline(metrics, {"value": 0.0, "low": low, "high": 0.1})}
        changed = replace(teacher, tasks={"triage": replace(result, baselines=baselines)})
        others = [each for each in run.evaluations if each is not teacher]
        found = said(replace(run, evaluations=[changed, *others]))
        assert len(found) == count
        assert not found or found[0].startswith("teacher SFT is not above a baseline on triage (marked ○)")
