"""What a grid may hold, and what its cells are."""

import re
from pathlib import Path

import pytest

from cache_builder.errors import ConfigError
from tests.support.toys import load_toy, write_toy
from trainer.config import Experiment
from trainer.tuning.grid import cells_of, default_grid, parse_grid


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return load_toy(write_toy(tmp_path))


def test_values_are_read_as_toml_and_else_as_strings() -> None:
    grid = parse_grid(["learning_rate=1e-3, 3e-3", "epochs_per_stage=2,6", "lr_scheduler_type=cosine,linear"])
    assert grid == {
        "learning_rate": [1e-3, 3e-3],
        "epochs_per_stage": [2, 6],
        "lr_scheduler_type": ["cosine", "linear"],
    }


@pytest.mark.parametrize("option", ["learning_rate", "=1", "learning_rate=", "learning_rate= "])
def test_what_is_no_field_with_values_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="expected field=value,value such as learning_rate=1e-3,3e-3"):
        parse_grid([option])
    with pytest.raises(ConfigError, match="learning_rate is given twice"):
        parse_grid(["learning_rate=1", "learning_rate=2"])


def test_every_combination_is_an_experiment_of_its_own(experiment: Experiment) -> None:
    grid = {"learning_rate": [1e-3, 3e-3], "weight_decay": [0.0, 0.1], "lr_scheduler_type": ["linear"], "bf16": [False]}
    cells = cells_of(experiment, "distill", grid)
    assert [cell.values["learning_rate"] for cell in cells] == [1e-3, 1e-3, 3e-3, 3e-3]
    assert [cell.experiment.distill.weight_decay for cell in cells] == [0.0, 0.1, 0.0, 0.1]
    assert all(cell.experiment.distill.lr_scheduler_type == "linear" for cell in cells)
    assert all(cell.experiment.distill.other_arguments == {"bf16": False} for cell in cells)
    assert len({cell.digest("distill", "td", 0) for cell in cells}) == 4
    assert all(cell.experiment.sft == experiment.sft for cell in cells)


def test_a_value_may_be_a_table_and_one_of_another_type_is_refused(experiment: Experiment) -> None:
    grid = parse_grid(["lr_scheduler_kwargs={num_cycles = 1},{num_cycles = 2}"])
    cells = cells_of(experiment, "student", grid)
    given = [cell.experiment.sft.student.other_arguments["lr_scheduler_kwargs"] for cell in cells]
    assert given == [{"num_cycles": 1}, {"num_cycles": 2}]
    with pytest.raises(ConfigError, match=r"distill.learning_rate: .*got datetime.date\(2024, 1, 1\)"):
        cells_of(experiment, "distill", parse_grid(["learning_rate=2024-01-01"]))


def test_a_cell_has_another_folder_once_another_setting_of_its_section_is_changed(experiment: Experiment) -> None:
    one = cells_of(experiment, "distill", {"learning_rate": [1e-3]})[0]
    changed = experiment.model_copy(update={"distill": experiment.distill.model_copy(update={"alpha": 0.9})})
    more = experiment.model_copy(update={"distill": experiment.distill.model_copy(update={"methods": ["td", "scd"]})})
    names = [
        cells_of(each, "distill", {"learning_rate": [1e-3]})[0].digest("distill", "td", 0) for each in (changed, more)
    ]
    assert names[0] != one.digest("distill", "td", 0) == names[1]
    assert one.digest("distill", "scd", 0) != one.digest("distill", "td", 0) != one.digest("distill", "td", 1)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"learning_rat": [1e-3]}, "distill.learning_rat: unknown key.*did you mean learning_rate"),
        ({"lr_scheduler_type": ["cosin"]}, "distill.lr_scheduler_type: there is no 'cosin'"),
        ({"learning_rate": ["fast"]}, "distill.learning_rate: .*got 'fast'"),
        ({"learning_rate": [1e-3, 1e-3]}, "learning_rate needs values, each once"),
        ({"learning_rate": []}, "learning_rate needs values, each once"),
        ({"eval_steps": [1, 2]}, "has eval_steps, which is not tuned: it says when the cells are judged"),
        ({"methods": [["td"]]}, "has methods, which is not tuned: which method it is tuned for is --method"),
        ({"seed": [1, 2]}, "distill.seed: not an option here; set run.seed or distill.seeds"),
        ({"learning_rate": [x / 1000 for x in range(1, 40)], "alpha": [x / 50 for x in range(30)]}, "1,170"),
    ],
)
def test_a_field_that_is_not_tuned_or_a_value_that_does_not_fit_is_refused_by_name(
    experiment: Experiment, grid: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cells_of(experiment, "distill", grid)


def test_the_default_grid_begins_with_the_config_s_own_values_and_a_section_replaces_it(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    experiment = load_toy(path)
    assert default_grid(experiment, "distill") == {"learning_rate": [3e-3, 1.5e-3, 6e-3], "epochs_per_stage": [1, 2]}
    assert default_grid(experiment, "teacher") == {"learning_rate": [3e-3, 1.5e-3, 6e-3], "num_train_epochs": [3, 6]}
    given = load_toy(path, "tune.student.learning_rate=[1e-3, 2e-3]")
    assert default_grid(given, "student") == {"learning_rate": [1e-3, 2e-3]}
    assert default_grid(given, "teacher") == default_grid(experiment, "teacher")


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("tune.distill.learning_rat=[1e-3]", "tune.distill.learning_rat: 0.001 does not fit: unknown key"),
        ("tune.teacher.num_train_epochs=[2, 0]", "tune.teacher.num_train_epochs: 0 does not fit"),
        ("tune.student.weight_decay=['much']", "tune.student.weight_decay: 'much' does not fit"),
        ("tune.distill.tail=['bucket', 'sack']", "tune.distill.tail: 'sack' does not fit"),
    ],
)
def test_a_grid_that_could_not_be_tried_is_refused_when_the_config_is_read(
    tmp_path: Path, grid: str, said: str
) -> None:
    path = write_toy(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_toy(path, grid)
