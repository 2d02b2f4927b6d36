"""The best checkpoint of the teacher by its own answers to validation rows, and never by the test set."""

import json
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM

from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheMismatchError, ConfigError
from tests.support.toys import COLORS, load_toy, write_toy
from trainer.evaluation.evaluate import evaluate_model
from trainer.evaluation.tasks import resolve_tasks
from trainer.report.run.run_reader import read_run
from trainer.report.sections.overview import report_of
from trainer.stages import best_teacher as stage
from trainer.stages.distill import distill
from trainer.stages.evaluate_run import evaluate_run
from trainer.stages.selection import check_selections

BY_METRIC = "distill.best='metric'"
CHOSEN = "tasks.color.kind='classification'", f"tasks.color.choices={list(COLORS)}", "tasks.color.method='likelihood'"


def test_each_checkpoint_answers_the_validation_rows_once_and_the_best_answers_teach(
    toy: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, cache, prepared = toy(BY_METRIC, *CHOSEN, "distill.methods=['td']")
    held_out = prepared.examples["validation"]
    tasks = resolve_tasks(held_out, "files", experiment.tasks)
    right: dict[str, float] = {}
    for name in cache.checkpoints:
        model: Any = AutoModelForCausalLM.from_pretrained(experiment.output_dir / "teacher" / name)
        arguments = model, prepared.tokenizer, held_out, tasks, experiment.evaluate, tmp_path / "judged", name
        judged = evaluate_model(*arguments, text=experiment.text, split="validation")
        right[name] = judged["tasks"]["color"]["metrics"]["accuracy"]["value"]
    best = max(cache.checkpoints, key=lambda name: (right[name], -cache.held_out(name)))
    folder = distill(experiment, "td", 0, cache, prepared)
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["best"] == best and {each["choice"] for each in plan["stages"]} == {best}
    recorded = json.loads((experiment.output_dir / "teacher-metric" / "stage.json").read_text())["metrics"]
    assert recorded == pytest.approx(right) and len(set(right.values())) > 1
    monkeypatch.setattr(stage, "load_on_device", lambda *_: pytest.fail("judged again"))
    assert stage.best_teacher(experiment, prepared, cache) == best


def test_evaluation_judges_that_checkpoint_and_the_report_says_how_it_was_chosen(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, cache, prepared = toy(BY_METRIC)
    scores = iter([0.75, 0.5, 0.5])
    monkeypatch.setattr("trainer.evaluation.selection.ValidationTasks.score", lambda *_: next(scores))
    first = cache.checkpoints[0]
    assert cache.held_out(first) != min(cache.held_out(name) for name in cache.checkpoints)
    evaluate_run(experiment, prepared, cache, Console(quiet=True))
    judged = json.loads((experiment.output_dir / "evaluate" / "teacher" / "inputs.json").read_text())
    assert judged["weights"] == cache.checkpoint(first).identity.weights_fingerprint
    run = read_run(experiment.output_dir)
    assert run.best is not None
    (experiment.output_dir / "config.toml").write_text('[distill]\nbest = "metric"\n')
    run = read_run(experiment.output_dir)
    facts = dict(report_of(run, "toy", "toy", "").facts)
    assert facts["the best checkpoint"] == f"{first}, best answers to the validation examples"


def test_judging_with_other_settings_is_refused_by_their_names(toy: Any) -> None:
    experiment, cache, prepared = toy(BY_METRIC)
    stage.best_teacher(experiment, prepared, cache)
    fewer = experiment.evaluate.model_copy(update={"max_new_tokens": 3})
    with pytest.raises(CacheMismatchError, match=r"teacher-metric was made from other settings.*\n  selection\."):
        stage.best_teacher(experiment.model_copy(update={"evaluate": fewer}), prepared, cache)


def test_checkpoints_of_another_teacher_are_refused(toy: Any) -> None:
    experiment, cache, prepared = toy(BY_METRIC)
    elsewhere = {"checkpoints": [str(experiment.output_dir / "teacher" / "best")]}
    other = experiment.model_copy(update={"teacher": experiment.teacher.model_copy(update=elsewhere)})
    with pytest.raises(CacheMismatchError, match=r"asks every checkpoint of cache .* is none of this"):
        stage.best_teacher(other, prepared, cache)


def test_without_validation_rows_it_is_refused_before_anything_is_trained(tmp_path: Any) -> None:

    experiment = load_toy(write_toy(tmp_path), BY_METRIC, "data.validation_fraction=0")
    with pytest.raises(ConfigError, match='best = "metric" need validation examples'):
        check_selections(experiment, Prepared(experiment))
