"""The settings that are tried: every combination of a few values of a section's fields, each an experiment of its own.

footsteps tune CONFIG distill --grid learning_rate=1e-3,3e-3 --grid epochs_per_stage=2,6       4 cells

[tune.distill]                      the same in the config, for whoever gives no --grid
learning_rate = [1e-3, 3e-3]
epochs_per_stage = [2, 6]
"""

import copy
import functools
import hashlib
import itertools
import json
import operator
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cache_builder.config import make_experiment
from cache_builder.errors import ConfigError
from trainer.config import Experiment, TrainingConfig

Part = Literal["teacher", "student", "distill"]
SECTIONS: dict[Part, str] = {"teacher": "sft.teacher", "student": "sft.student", "distill": "distill"}
EPOCHS: dict[Part, str] = {"teacher": "num_train_epochs", "student": "num_train_epochs", "distill": "epochs_per_stage"}
NOT_TUNED = {
    "methods": "which method it is tuned for is --method",
    "seeds": "the first seed is used",
    "init": "it is another student",
    "best": "it is another teacher",
    "select_by": "it says how the cells are judged",
    "eval_steps": "it says when the cells are judged",
    "save_steps": "it changes nothing that is judged",
    "logging_steps": "it changes nothing that is judged",
    "eval_batch_tokens": "it changes nothing that is judged",
    "report_to": "it changes nothing that is judged",
}
"""Fields of the sections that no grid has, with the reason."""
LARGEST = 1000
"""Cells of a grid at most."""


@dataclass(frozen=True)
class Cell:
    """One combination of values, and the experiment with them."""

    values: dict[str, Any]
    experiment: Experiment

    def digest(self, part: Part, method: str, seed: int) -> str:
        """Name the cell's folder: by everything that its training is told, so that other settings have another."""
        section = section_of(self.experiment, part).model_dump(mode="json", exclude={"methods", "seeds"})
        told = {"section": section, "method": method, "seed": seed}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def section_of(experiment: Experiment, part: Part) -> TrainingConfig:
    """Return the section that a part of the training is told by."""
    return experiment.distill if part == "distill" else getattr(experiment.sft, part)


def steps_of(cell: Cell, part: Part, sequences: int, stages: int) -> int:
    """Return the optimizer steps of a cell on so many sequences; a fine-tuning has one stage."""
    section = section_of(cell.experiment, part)
    return stages * section.steps(sequences, getattr(section, EPOCHS[part]))


def parse_grid(options: Sequence[str]) -> dict[str, list[Any]]:
    """Read `field=value,value,…`, values as in TOML, else strings.

    Raises:
        ConfigError: no such form, a field twice, or no value.
    """
    grid: dict[str, list[Any]] = {}
    for option in options:
        field, equals, text = option.partition("=")
        field = field.strip()
        if not equals or not field or not text.strip():
            raise ConfigError(f"--grid {option!r}: expected field=value,value such as learning_rate=1e-3,3e-3")
        if field in grid:
            raise ConfigError(f"--grid {option!r}: {field} is given twice")
        try:
            grid[field] = tomllib.loads(f"values = [{text}]")["values"]
        except tomllib.TOMLDecodeError:
            grid[field] = [value.strip() for value in text.split(",")]
    return grid


def default_grid(experiment: Experiment, part: Part) -> dict[str, list[Any]]:
    """Return the config's own grid; where it has none, three learning rates and two numbers of epochs around them."""
    given = getattr(experiment.tune, part)
    if given:
        return dict(given)
    section = section_of(experiment, part)
    epochs = getattr(section, EPOCHS[part])
    rate = section.learning_rate
    return {"learning_rate": [rate, rate / 2, rate * 2], EPOCHS[part]: [epochs, 2 * epochs]}


def cells_of(experiment: Experiment, part: Part, grid: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Return a cell for every combination, in the grid's order.

    Raises:
        ConfigError: a field is not one to be tuned, a value does not fit or comes twice, or there are too many cells.
    """
    section = SECTIONS[part]
    for field, values in grid.items():
        if field in NOT_TUNED:
            raise ConfigError(f"the grid of {section} has {field}, which is not tuned: {NOT_TUNED[field]}")
        if not values or len({json.dumps(value, default=str) for value in values}) < len(values):
            raise ConfigError(f"the grid of {section}: {field} needs values, each once; got {list(values)}")
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > LARGEST:
        raise ConfigError(f"the grid of {section} has {count:,} cells; at most {LARGEST:,} are tried")
    found = []
    for combination in itertools.product(*grid.values()):
        chosen = dict(zip(grid, combination, strict=True))
        told = experiment.model_dump(exclude_none=True, mode="json")
        functools.reduce(operator.getitem, section.split("."), told).update(copy.deepcopy(chosen))
        found.append(Cell(chosen, make_experiment(Experiment, told, (), f"the grid of {section}")))
    return found
