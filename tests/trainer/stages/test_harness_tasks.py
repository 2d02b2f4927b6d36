"""Tasks of lm-evaluation-harness run on the student before training, the teacher, and the students, each once."""

import importlib.util
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from cache_builder.config import save_experiment
from cache_builder.errors import ConfigError
from tests.support.harness_tasks import ROWS, write_harness_tasks
from tests.support.toys import load_toy, write_toy
from trainer.cli import main
from trainer.evaluation.harness_tasks import check_harness, run_harness
from trainer.evaluation.tasks import EvaluateConfig
from trainer.report.changes import changes
from trainer.report.page import results_tables
from trainer.report.run.run_reader import read_run
from trainer.stages import evaluate_run as stage
from trainer.stages.distill import distill

QUIET = Console(quiet=True)
METHODS = "distill.methods=['td']"


def test_without_the_package_the_harness_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.evaluation.harness_tasks.find_spec", lambda name: None)
    experiment = load_toy(write_toy(tmp_path), "evaluate.harness=['arc_easy']")
    with pytest.raises(ConfigError, match=r"evaluate.harness = \['arc_easy'\] needs .*footsteps\[harness\]"):
        check_harness(experiment.evaluate)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.harness=['../x']", "evaluate.harness.0: String should match pattern"),
        ("evaluate.harness=['a', 'a']", "harness has duplicates"),
        ("evaluate.harness_limit=5", "belong to `harness`"),
        ("evaluate.harness_path='tasks'", "belong to `harness`"),
    ],
)
def test_a_setting_of_the_harness_that_does_nothing_is_refused(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_toy(write_toy(tmp_path), override)


def test_naming_a_task_of_the_harness_leaves_what_was_evaluated_before(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    named = load_toy(path, "evaluate.harness=['arc_easy']", "evaluate.harness_limit=5").evaluate
    assert named.own_tasks() == load_toy(path).evaluate.own_tasks()


def with_harness(test: Any) -> Any:
    """Mark a test that runs the harness, which `pip install "footsteps[harness]"` brings."""
    absent = importlib.util.find_spec("lm_eval") is None
    marks = pytest.mark.harness, pytest.mark.skipif(absent, reason="lm_eval is not installed")
    for mark in (*marks, pytest.mark.filterwarnings("ignore")):
        test = mark(test)
    return test


@pytest.fixture
def evaluated(toy: Any, tmp_path: Path) -> Any:
    """The toy and a student of it, judged also by a group of two tasks and by a perplexity."""
    folder = write_harness_tasks(tmp_path / "tasks")
    settings = METHODS, "evaluate.harness=['opposites', 'fluency']", f"evaluate.harness_path='{folder}'"
    experiment, cache, prepared = toy(*settings)
    distill(experiment, "td", 0, cache, prepared)
    stage.evaluate_run(experiment, prepared, cache, QUIET)
    return experiment, cache, prepared, folder


def found(experiment: Any, model: str, name: str) -> dict[str, Any]:
    return json.loads((experiment.output_dir / "evaluate" / model / "harness" / f"{name}.json").read_text())


@with_harness
def test_base_teacher_and_students_are_run_with_a_score_for_each_row(evaluated: Any) -> None:
    experiment, *_ = evaluated
    root = experiment.output_dir / "evaluate"
    models = {path.parent.parent.relative_to(root).as_posix() for path in root.rglob("harness/*.json")}
    assert models == {"base", "teacher", "student_sft", "td/seed-0/best"}
    assert (root / "base" / "metrics.json").is_file(), "what a student gained is gained against its base"
    opposites, fluency = (found(experiment, "td/seed-0/best", name) for name in ("opposites", "fluency"))
    assert {task: result["rows"] for task, result in opposites["tasks"].items()} == {"hot": ROWS, "cold": ROWS + 1}
    for task, result in opposites["tasks"].items():
        assert result["primary"] == "acc" and result["higher_is_better"]
        assert np.mean(list(opposites["scores"][task].values())) == result["metrics"]["acc"]["value"]
    perplexity = fluency["tasks"]["fluency"]
    assert not perplexity["higher_is_better"] and perplexity["metrics"].keys() == {"word_perplexity"}
    assert perplexity["metrics"]["word_perplexity"].keys() == {"value"} and not fluency["scores"]


@with_harness
def test_the_report_says_what_was_gained_and_what_was_lost(evaluated: Any) -> None:
    experiment, *_ = evaluated
    of_td = {change.task: change for change in changes(read_run(experiment.output_dir)) if change.label == "td"}
    assert list(of_td) == ["color", "fluency", "opposites"]
    assert of_td["color"].own and not of_td["opposites"].own
    rows = [score for rows in found(experiment, "base", "opposites")["scores"].values() for score in rows.values()]
    assert len(rows) == 2 * ROWS + 1 and of_td["opposites"].base == pytest.approx(np.mean(rows))
    before, after = (
        found(experiment, model, "fluency")["tasks"]["fluency"]["metrics"]["word_perplexity"]["value"]
        for model in ("base", "td/seed-0/best")
    )
    assert of_td["fluency"].gained == pytest.approx(before - after) and of_td["fluency"].p_value is None
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(results_tables(experiment.output_dir))
    assert "opposites" in console.export_text()


@with_harness
def test_what_has_been_run_is_not_run_again_but_with_other_tasks_or_weights_it_is(
    evaluated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, cache, prepared, folder = evaluated
    run: list[str] = []

    def counting(model: Any, tokenizer: Any, name: str, settings: Any) -> dict[str, Any]:
        run.append(name)
        return {"tasks": {}, "scores": {}}

    monkeypatch.setattr(stage, "run_harness", counting)
    stage.evaluate_run(experiment, prepared, cache, QUIET)
    assert run == []
    with (folder / "hot.jsonl").open("a") as file:
        file.write('{"question": "?", "choices": ["red", "blue"], "label": 0}\n')
    stage.evaluate_run(experiment, prepared, cache, QUIET)
    assert run == ["opposites", "fluency"] * 4


@with_harness
def test_the_harness_on_the_runs_own_exported_tasks_has_the_runs_own_scores(toy: Any) -> None:
    experiment, cache, prepared = toy(METHODS)
    save_experiment(experiment, experiment.output_dir / "config.toml")
    assert CliRunner().invoke(main, ["export", "lm-eval", str(experiment.output_dir)]).exit_code == 0
    own = {"harness": ["footsteps_color"], "harness_path": str(experiment.output_dir / "lm-eval")}
    judged = experiment.model_copy(update={"evaluate": experiment.evaluate.model_copy(update=own)})
    stage.evaluate_run(judged, prepared, cache, QUIET)
    for model in ("base", "teacher", "student_sft"):
        ours = json.loads((experiment.output_dir / "evaluate" / model / "metrics.json").read_text())
        theirs = found(experiment, model, "footsteps_color")["tasks"]["footsteps_color"]
        assert math.isclose(
            theirs["metrics"]["exact_match"]["value"], ours["tasks"]["color"]["metrics"]["exact_match"]["value"]
        )


@with_harness
def test_a_name_that_the_harness_does_not_have_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = write_harness_tasks(tmp_path / "tasks")
    settings = "evaluate.harness=['oposites']", f"evaluate.harness_path='{folder}'"
    experiment = load_toy(write_toy(tmp_path / "toy"), *settings)
    with pytest.raises(ConfigError, match=r"'oposites' is no task, group or tag of lm_eval.*did you mean 'opposites'"):
        check_harness(experiment.evaluate)


@with_harness
def test_a_model_is_left_in_its_mode_where_a_task_fails(
    make_model: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = write_harness_tasks(tmp_path / "tasks")
    hot = folder / "hot.yaml"
    hot.write_text(hot.read_text().replace("{{question}}", "{{1 // (2 - label)}}"))  # its third row's label is 2
    model = make_model().train()
    with pytest.raises(ZeroDivisionError):
        run_harness(model, tokenizer, "hot", EvaluateConfig(harness=["hot"], harness_path=str(folder)))
    assert model.training, "a model that a failure leaves in eval mode trains on without dropout"
    assert run_harness(model, tokenizer, "cold", EvaluateConfig(harness=["cold"], harness_path=str(folder)))
    assert model.training


@with_harness
def test_a_task_that_cannot_be_loaded_is_one_message(toy: Any, tmp_path: Path) -> None:
    folder = write_harness_tasks(tmp_path / "tasks")
    (folder / "hot.jsonl").unlink()
    experiment, cache, prepared = toy(METHODS, "evaluate.harness=['hot']", f"evaluate.harness_path='{folder}'")
    with pytest.raises(ConfigError, match=r"evaluate.harness: task 'hot' cannot be loaded: FileNotFoundError"):
        stage.evaluate_run(experiment, prepared, cache, QUIET)
