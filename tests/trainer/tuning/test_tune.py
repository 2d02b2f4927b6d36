"""A real grid: judged on held-out data, stopped, killed and continued; the test examples are never touched."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cache_builder.config import load_experiment
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError, OtherInputsError, TrainingError
from tests.support.shrinkable import save_source
from tests.support.toys import load_toy, write_toy
from trainer.cli import main
from trainer.config import Experiment, LoraSection
from trainer.loop.trainer import SequenceTrainer
from trainer.tuning.cost import cost_of
from trainer.tuning.grid import Part, cells_of
from trainer.tuning.page import cautions, facts_of, line_of, records_of, table_of, write_grid
from trainer.tuning.tune import Grid, Result, best_of, tune

GRID = {"learning_rate": [1e-2, 1e-5], "epochs_per_stage": [2]}
RATES = ["--grid", "learning_rate=3e-3,6e-3"]
LORA = {"lora": LoraSection(r=2)}


class Untouchable:
    """Test examples that cannot be looked at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test examples were touched: {name}")

    def __len__(self) -> int:
        raise AssertionError("the test examples were counted")

    def __iter__(self) -> Any:
        raise AssertionError("the test examples were read")

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("a test example was read")


def shown(results: list[Result]) -> list[tuple]:
    return [(r.cell.values, r.history, r.best_loss, r.best_step, r.stopped) for r in results]


class Killed(BaseException):
    """Ends a process in the middle of a step."""


def test_a_grid_names_the_best_stops_the_hopeless_and_comes_out_the_same_when_it_was_killed(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, cache, prepared = toy("distill.save_steps=7")
    prepared.examples["test"] = Untouchable()
    cells = cells_of(experiment, "distill", GRID)
    assert re.search(
        r"about [\d.]+ (?:s|min) \(measured: 1 × (student|teacher)\)", cost_of(Grid(experiment, "distill"), cells)
    )
    results = tune(Grid(experiment, "distill"), cells, prepared, cache)
    assert best_of(results).cell.values["learning_rate"] == 1e-2
    assert [result.stopped for result in results] == [False, True]
    assert results[1].history.shares()[-1] < 1
    assert results[0].best_loss == min(results[0].history.losses)
    folder = experiment.output_dir / "tune" / "distill"
    assert not list(folder.glob("*/distill/td/seed-0/*/"))  # the weights of both are gone
    assert not (experiment.output_dir / "evaluate").exists()

    again, cache, prepared = toy("distill.save_steps=7")
    steps = 0
    step = SequenceTrainer.training_step

    def killed_at_times(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps in (20, 35, 60):
            raise Killed
        return step(self, *args, **options)

    monkeypatch.setattr(SequenceTrainer, "training_step", killed_at_times)
    kills, found = 0, None
    while found is None:
        try:
            found = tune(Grid(again, "distill"), cells_of(again, "distill", GRID), prepared, cache)
        except Killed:
            kills += 1
    assert kills == 3
    assert shown(found) == shown(results)

    paths = write_grid(Grid(again, "distill"), found)
    best = load_experiment(Experiment, paths[-1])
    assert (best.distill.learning_rate, best.distill.epochs_per_stage) == (1e-2, 2)
    assert best.output_dir == again.output_dir and best.distill.methods == again.distill.methods
    assert [record["note"] for record in records_of(found)][-1].startswith("stopped at ")
    assert any("is the largest of the grid" in line for line in cautions(found))


def test_a_fine_tuning_is_tuned_with_the_same_grid_and_leaves_no_weights(toy: Callable[..., Any]) -> None:
    experiment, _, prepared = toy()
    prepared.examples["test"] = Untouchable()
    for part in ("teacher", "student"):
        cells = cells_of(experiment, part, {"learning_rate": [3e-3], "num_train_epochs": [1, 2]})  # type: ignore[arg-type]
        results = tune(Grid(experiment, part), cells, prepared, None)  # type: ignore[arg-type]
        assert results[1].best_loss < results[0].best_loss
        assert not list((experiment.output_dir / "tune" / part).rglob("*.safetensors"))


@contextmanager
def untrained() -> Iterator[None]:
    """Hold the block to train no step."""

    def step(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a step was trained")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequenceTrainer, "training_step", step)
        yield


def test_a_finished_cell_of_another_model_is_refused_and_never_taken_for_this_ones(toy: Callable[..., Any]) -> None:
    experiment, cache, prepared = toy()
    parts: list[tuple[Part, Any]] = [("teacher", None), ("student", None), ("distill", cache)]
    for part, given in parts:
        cells = cells_of(experiment, part, {"learning_rate": [3e-3]})
        first = tune(Grid(experiment, part), cells, prepared, given)
        assert shown(tune(Grid(experiment, part), cells, prepared, given)) == shown(first)
    for part, given in parts:
        role = "teacher" if part == "teacher" else "student"
        model = getattr(experiment, role)
        for change in ({"model": experiment.teacher.model if role == "student" else experiment.student.model}, LORA):
            other = experiment.model_copy(update={role: model.model_copy(update=change)})
            cells = cells_of(other, part, {"learning_rate": [1e-3, 3e-3]})
            message = rf"(?s)(?:model|start)[.\w]*: it has.*remove .*/tune/{part} where"
            with untrained(), pytest.raises(OtherInputsError, match=message):
                tune(Grid(other, part), cells, prepared, given)


def test_a_cell_stays_stopped_behind_its_leader_and_is_trained_to_its_end_in_a_grid_without(
    toy: Callable[..., Any],
) -> None:
    experiment, _, prepared = toy()

    def tried(*rates: float) -> list[Result]:
        cells = cells_of(experiment, "student", {"learning_rate": list(rates), "num_train_epochs": [4]})
        return tune(Grid(experiment, "student"), cells, prepared, None)

    first = tried(1e-2, 1e-5)
    assert [result.stopped for result in first] == [False, True]
    with untrained():
        assert shown(tried(1e-2, 1e-5)) == shown(first)
    alone = tried(1e-5)
    assert not alone[0].stopped and best_of(alone).history.shares()[-1] == 1.0
    with untrained():
        assert shown(tried(1e-5, 1e-2)) == shown([*alone, first[0]])


def test_a_cell_that_diverges_is_recorded_and_never_the_best(toy: Callable[..., Any]) -> None:
    experiment, _, prepared = toy()
    grid = Grid(experiment, "student")
    cells = cells_of(experiment, "student", {"learning_rate": [1e30, 3e-3], "num_train_epochs": [1]})
    results = tune(grid, cells, prepared, None)
    assert [result.diverged for result in results] == [True, False] and best_of(results) is results[1]
    assert results[0].history.losses == () and results[0].history.total_steps == 14
    assert not list(grid.folder.rglob("*.safetensors"))
    assert line_of(results[0]) == "learning_rate 1e+30, num_train_epochs 1: diverged, its loss was no number"
    assert json.dumps(facts_of(results[0]), allow_nan=False)
    records = records_of(results)
    assert [record["note"] for record in records] == ["best", "diverged"] and records[1]["held-out loss"] is None
    assert table_of(records, "").row_count == 2 and len(cautions(results)) >= 1
    assert all(path.is_file() for path in write_grid(grid, results))
    with untrained():
        assert shown(tune(grid, cells, prepared, None)) == shown(results)
    with pytest.raises(TrainingError, match="all 1 cells diverged"):
        write_grid(grid, results[:1])


def test_without_held_out_data_nothing_can_be_judged(tmp_path: Path) -> None:
    experiment = load_toy(write_toy(tmp_path), "data.validation_fraction=0.0")
    cells = cells_of(experiment, "student", {"learning_rate": [1e-3]})
    with pytest.raises(ConfigError, match="nothing is held out, so no setting can be judged"):
        tune(Grid(experiment, "student"), cells, Prepared(experiment), None)


def test_the_command_tells_the_cost_before_it_starts_and_refuses_by_name(tmp_path: Path) -> None:
    path = str(write_toy(tmp_path))
    told = CliRunner().invoke(main, ["tune", path, "distill", "--grid", "learning_rate=1e-3,2e-3", "--dry-run"])
    assert told.exit_code == 0, told.output
    assert "2 cells, 84 steps" in " ".join(told.output.split())
    assert not (tmp_path / "run" / "tune").exists()
    refused = CliRunner().invoke(main, ["tune", path, "distill", "--grid", "learning_rat=1"])
    assert refused.exit_code == 2 and "did you mean learning_rate" in refused.output
    unknown = CliRunner().invoke(main, ["tune", path, "distill", "--method", "tdd"])
    assert unknown.exit_code == 2 and "method 'tdd' is not known" in unknown.output
    given = ["tune", path, "teacher", "--set", f"teacher.checkpoints=['{tmp_path}']"]
    listed = CliRunner().invoke(main, given)
    assert listed.exit_code == 2 and "there is no teacher to tune" in listed.output


def footsteps(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_each_part_is_tuned_from_the_best_of_the_one_before_and_the_run_takes_them_all(tmp_path: Path) -> None:
    """With a best teacher by its answers, and a method and losses that the config itself has not."""
    overrides = ["distill.best='metric'", "distill.methods=['td']", "teacher.checkpoints=2"]
    overrides += ["sft.teacher.num_train_epochs=1", "sft.student.num_train_epochs=1"]
    first = ["tune", str(write_toy(tmp_path, examples=60)), "teacher"]
    output = footsteps(*first, *(part for each in overrides for part in ("--set", each)), *RATES)
    for options in (RATES, ["--method", "td+aw", "--grid", "aw_source=train,crossfit"], []):
        output = footsteps(*next_of(output), *options)
    run = tmp_path / "run"
    best = load_experiment(Experiment, run / "tune" / "distill" / "best.toml")
    assert best == load_experiment(Experiment, run / "config.toml")
    for role in ("teacher", "student"):
        rates = [float(line.split(",")[0]) for line in (run / f"tune/{role}/grid.csv").read_text().splitlines()[1:]]
        made = json.loads((run / role / "inputs.json").read_text())["training"]
        assert made["learning_rate"] == getattr(best.sft, role).learning_rate == rates[0]
    assert json.loads((run / "teacher-metric" / "stage.json").read_text())["metrics"]


def next_of(output: str) -> list[str]:
    """Return the arguments of the command that the last line of an output names."""
    return output.splitlines()[-1].removeprefix("next: footsteps ").split()


def test_a_student_that_is_yet_to_be_shrunk_is_shrunk_first(tmp_path: Path) -> None:
    path, source = str(write_toy(tmp_path, examples=60)), save_source(tmp_path / "source")
    overrides = ["--set", f"student.model='{source}'", "--set", "shrink.layers=2"]
    output = footsteps("tune", path, "student", *overrides, "--grid", "num_train_epochs=1")
    assert "before them shrink (by influence, 64 sequences)" in " ".join(output.split())
    assert (tmp_path / "run" / "shrunk" / "stage.json").is_file() and next_of(output)[-1] == "distill"


def test_the_cost_has_what_is_made_first_and_nothing_that_is_finished(toy: Callable[..., Any], tmp_path: Path) -> None:
    fresh = load_toy(write_toy(tmp_path / "fresh"), "distill.best='metric'")
    grid = Grid(fresh, "distill", "td+aw")
    cells = cells_of(fresh, "distill", {"aw_source": ["train", "crossfit"]})
    told = cost_of(grid, cells)
    first = ("sft teacher (41 steps", "cache build (3 ×", "sft student (27 steps", "losses (108 seq", "judge (3 ch")
    assert all(stage in told for stage in (*first, "cross-fit (student and teacher, by halves)")), told
    assert told.startswith("2 cells, 84 steps, before them") and "operations, time not known" in told

    experiment, cache, prepared = toy()
    grid = Grid(experiment, "distill")
    cells = cells_of(experiment, "distill", {"learning_rate": [3e-3, 1e-3]})
    assert cost_of(grid, cells).startswith("2 cells, 84 steps; ")
    tune(grid, cells[:1], prepared, cache)
    assert cost_of(grid, cells).startswith("1 cell (and 1 with a result), 42 steps; ")
    assert cost_of(grid, cells[:1]) == "1 cell, and none is left to train"


def test_a_model_whose_size_is_not_known_here_is_tuned_all_the_same(tmp_path: Path) -> None:
    path = str(write_toy(tmp_path))
    unknown = ["--dry-run", "--set", "student.model='someone/nameless'", *RATES]
    for shrunk in ([], ["--set", "shrink.layers=2"]):
        told = " ".join(footsteps("tune", path, "student", *unknown, *shrunk).split())
        assert "2 cells, 54 steps" in told and "operations not known, as the size of 'someone/nameless' is not." in told
        told = " ".join(footsteps("tune", path, "teacher", *unknown, *shrunk).split())
        assert "2 cells, 82 steps" in told and "not known, as" not in told and "operations, time not known" in told


def test_machines_are_told_each_cell_and_the_best_and_quiet_tells_nothing(tmp_path: Path) -> None:
    grid = ["tune", str(write_toy(tmp_path)), "student", "--grid", "learning_rate=1e-3,2e-3"]
    said = CliRunner().invoke(main, [*grid, "--json"])
    assert said.exit_code == 0, said.output
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    (tuning,), (tuned,) = ([line for line in lines if line["event"] == event] for event in ("tuning", "tuned"))
    tried = [line for line in lines if line["event"] == "tried"]
    assert [cell["values"] for cell in tried] == tuning["cells"] == [{"learning_rate": 1e-3}, {"learning_rate": 2e-3}]
    best = min(tried, key=lambda cell: cell["held_out_loss"])
    assert tuned["values"] == best["values"] and tuned["held_out_loss"] == best["held_out_loss"]
    assert Path(tuned["config"]).name == "best.toml" and "of the grid" in tuned["cautions"][0]
    assert CliRunner().invoke(main, [*grid, "--quiet"]).output == ""
