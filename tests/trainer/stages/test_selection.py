"""The best state is chosen on validation data, by loss or by the tasks' own metric, and never by the test set."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from cache_builder.config import save_experiment
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError, DataError
from tests.support.interruption import stops_at
from tests.support.paths import ROOT
from tests.support.students import recorded
from tests.support.toys import load_toy, open_toy, write_toy
from trainer.config import Experiment
from trainer.evaluation.evaluate import evaluate_model
from trainer.evaluation.tasks import resolve_tasks
from trainer.loop import trainer as loop
from trainer.loop.state import TrainState
from trainer.report.model_card import write_model_card
from trainer.report.run.run_reader import read_run
from trainer.report.sections.overview import report_of
from trainer.stages.distill import distill
from trainer.stages.selection import check_selections, selection
from trainer.stages.sft import sft_student

BY_METRIC = ("distill.select_by='metric'", "distill.eval_steps=9", "distill.save_steps=9", "distill.learning_rate=8e-3")

STUDENT = "distill/td/seed-0"


class NoTest(dict[str, Any]):
    """Examples by split, of which the test's must not be asked for."""

    def __getitem__(self, split: str) -> Any:
        assert split != "test", "the test set was used while training"
        return super().__getitem__(split)


def logged(folder: Path, key: str) -> dict[int, float]:
    return {entry["step"]: entry[key] for entry in json.loads((folder / "log.json").read_text()) if key in entry}


def test_a_metric_is_followed_before_the_loss_and_of_equal_ones_the_lower_loss_counts() -> None:
    state = TrainState()
    kept = [state.note(*measured) for measured in ((1, 2.0, 0.5), (2, 1.0, 0.5), (3, 0.5, 0.4), (4, 3.0, 0.6))]
    assert kept == [True, True, False, True] and (state.best_step, state.best_loss, state.best_metric) == (4, 3.0, 0.6)
    by_loss = TrainState()
    assert [by_loss.note(step, loss, None) for step, loss in ((1, 2.0), (2, 2.0), (3, 1.0))] == [True, False, True]
    worse_than_chance = TrainState()
    assert [worse_than_chance.note(step, 1.0, kappa) for step, kappa in ((1, -0.2), (2, -0.1))] == [True, True]


def test_the_best_student_is_the_one_whose_own_answers_to_validation_rows_are_the_best(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state that was measured is kept and judged again by itself, from its folder."""
    experiment, cache, prepared = toy(*BY_METRIC)
    prepared.examples = NoTest(prepared.examples)
    save = loop.SequenceTrainer.evaluate

    def keeping(self: Any, *args: Any, **options: Any) -> Any:
        self.save_model(str(tmp_path / "states" / str(self.state.global_step)), _internal_call=True)
        return save(self, *args, **options)

    monkeypatch.setattr(loop.SequenceTrainer, "evaluate", keeping)
    folder = distill(experiment, "td", 0, cache, prepared)
    held_out = prepared.examples["validation"]
    tasks = resolve_tasks(held_out, "files", experiment.tasks)
    measured, losses = logged(folder, "eval_metric"), logged(folder, "eval_loss")
    assert measured.keys() == losses.keys() and len(measured) > 3 and len(set(measured.values())) > 1
    for step, value in measured.items():
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "states" / str(step))
        arguments = model, prepared.tokenizer, held_out, tasks, experiment.evaluate, tmp_path, str(step)
        judged = evaluate_model(*arguments, text=experiment.text, split="validation")
        assert judged["tasks"]["color"]["metrics"]["exact_match"]["value"] == pytest.approx(value)
    best = max(measured, key=lambda step: (measured[step], -losses[step]))
    assert best != min(losses, key=lambda step: losses[step]), "the loss would have chosen the same state"
    stage = json.loads((folder / "stage.json").read_text())
    assert (stage["best_step"], stage["best_metric"]) == (best, measured[best])
    chosen = load_file(folder / "best" / "model.safetensors")
    for name, values in load_file(tmp_path / "states" / str(best) / "model.safetensors").items():
        np.testing.assert_array_equal(chosen[name], values)


@pytest.fixture(scope="module")
def chosen(built_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run folder of a student chosen by its loss, and of the same one chosen by its metric."""
    folders = {}
    for select_by in ("loss", "metric"):
        setting = f"distill.select_by='{select_by}'"
        experiment, cache, prepared = open_toy(built_toy, tmp_path_factory.mktemp(select_by), *BY_METRIC, setting)
        distill(experiment, "td", 0, cache, prepared)
        folders[select_by] = experiment.output_dir
    return folders


@pytest.mark.parametrize("select_by", ["loss", "metric"])
def test_without_test_rows_the_same_student_is_chosen(chosen: dict[str, Path], toy: Any, select_by: str) -> None:
    experiment, cache, prepared = toy(*BY_METRIC, f"distill.select_by='{select_by}'")
    prepared.examples = NoTest({**prepared.examples, "test": None})
    ours, theirs = distill(experiment, "td", 0, cache, prepared), chosen[select_by] / STUDENT
    assert recorded(ours) == recorded(theirs)
    values = load_file(theirs / "best/model.safetensors")
    for name, value in load_file(ours / "best/model.safetensors").items():
        np.testing.assert_array_equal(value, values[name])


def test_a_resumed_choice_by_metric_has_the_bits_of_an_uninterrupted_one(toy: Any) -> None:
    quiet, stopped = toy(*BY_METRIC), toy(*BY_METRIC)
    with stops_at(30):
        distill(stopped[0], "scd", 0, *stopped[1:])
    folders = [distill(each[0], "scd", 0, *each[1:]) for each in (quiet, stopped)]
    assert logged(folders[0], "eval_metric") == logged(folders[1], "eval_metric")
    for which in ("best", "last"):
        ours, theirs = (load_file(folder / which / "model.safetensors") for folder in folders)
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])
    assert recorded(folders[0]) == recorded(folders[1])


def test_answering_validation_rows_changes_nothing_of_the_training(chosen: dict[str, Path]) -> None:
    folders = [chosen[select_by] / STUDENT for select_by in ("loss", "metric")]
    ours, theirs = (load_file(folder / "last" / "model.safetensors") for folder in folders)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])
    assert logged(folders[0], "eval_loss") == logged(folders[1], "eval_loss")


@pytest.mark.parametrize(
    ("select_by", "words"),
    [("loss", "the lowest loss"), ("metric", "the highest mean of the primary metrics of its tasks")],
)
def test_report_and_card_name_what_chose_the_student(chosen: dict[str, Path], select_by: str, words: str) -> None:
    run = read_run(chosen[select_by])
    assert run.selections() == words
    card = write_model_card(chosen[select_by] / STUDENT / "best", run).read_text()
    assert f"of all states measured, they had {words}" in card


def test_the_student_sft_is_chosen_by_its_metric_too_and_another_choice_is_another_stage(tmp_path: Path) -> None:
    options = ("sft.student.select_by='metric'", "sft.student.eval_steps=5")
    path = write_toy(tmp_path)
    experiment = load_toy(path, *options)
    prepared = Prepared(experiment)
    folder = sft_student(experiment, prepared)
    measured, losses = logged(folder, "eval_metric"), logged(folder, "eval_loss")
    stage = json.loads((folder / "stage.json").read_text())
    assert stage["best_step"] == max(measured, key=lambda step: (measured[step], -losses[step]))
    save_experiment(experiment, experiment.output_dir / "config.toml")
    facts = dict(report_of(read_run(experiment.output_dir), "toy", "toy", "").facts)
    assert facts["the student SFT, on validation"] == "the highest mean of the primary metrics of its tasks"
    with pytest.raises(ValueError, match="was made from other settings"):
        sft_student(load_toy(path, *options, "sft.student.select_by='loss'"), prepared)
    with pytest.raises(ConfigError, match=r"sft.teacher.select_by: not an option here; set distill.best"):
        load_toy(path, "sft.teacher.select_by='metric'")


def refused(tmp_path: Path, *overrides: str, validation: list[dict[str, Any]] | None = None) -> None:
    path = write_toy(tmp_path)
    if validation is not None:
        (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in validation))
        overrides = (*overrides, f"data.validation='{tmp_path}/held.jsonl'")
    experiment: Experiment = load_toy(path, "distill.select_by='metric'", *overrides)
    check_selections(experiment, Prepared(experiment))


def test_without_validation_rows_a_choice_by_metric_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='select_by = "metric" and best = "metric" need validation examples; give'):
        refused(tmp_path, "data.validation_fraction=0")


def test_validation_rows_without_an_answer_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'t1' is a `text`, which has no answer to judge"):
        refused(tmp_path, validation=[{"id": "t1", "task": "color", "text": "red then green"}])


def test_the_parts_of_several_processes_give_the_metric_of_all_rows(toy: Any) -> None:
    experiment, _, prepared = toy()
    judge = selection(experiment, prepared, "metric")
    assert judge is not None
    model: Any = AutoModelForCausalLM.from_pretrained(experiment.output_dir / "student" / "best").eval()
    whole, parts = judge.score(model), Parts([])
    for process in range(3):
        with pytest.raises(Gathered):
            judge.score(model, (process, 3), parts.gather)
    assert len({row for _, row, _ in parts.found}) == len(parts.found) == len(prepared.examples["validation"])
    assert judge.score(model, (0, 3), lambda answers: parts.found) == whole


class Gathered(Exception):
    """A process has handed over its answers."""


@dataclass
class Parts:
    found: list[Any]

    def gather(self, answers: list[Any]) -> list[Any]:
        self.found += answers
        raise Gathered


@pytest.mark.slow
def test_two_processes_keep_the_state_whose_metric_they_measured(toy: Any, tmp_path: Path) -> None:
    """Each answers half of the validation rows; one process, given what they kept, measures the same."""
    experiment, _, prepared = toy(*BY_METRIC, "distill.methods=['td']", "distill.per_device_train_batch_size=4")
    save_experiment(experiment, tmp_path / "experiment.toml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer.cli"]
    subprocess.run([*command, "distill", str(tmp_path / "experiment.toml")], cwd=ROOT, check=True)
    folder = experiment.output_dir / "distill" / "td" / "seed-0"
    judge = selection(experiment, prepared, "metric")
    assert judge is not None
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "best").eval()
    assert json.loads((folder / "stage.json").read_text())["best_metric"] == judge.score(model)
