"""Train the cells of a grid one after another from one cache, stop the hopeless, and name the best by validation data.

tune/<part>/<digest>/          a run folder of its own; its weights are removed once it is judged
tune/<part>/<digest>/…/inputs.json      what its training was made from: never taken for another model's
tune/<part>/<digest>/result.json        values, held-out losses, best loss and metric, how it ended; sealed
tune/<part>/grid.csv  grid.png  best.toml     the table, the plot, and the config with the best values for every method

The test examples are neither answered nor scored here.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cache_builder.cache.reader import Cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError, DivergedError, OtherInputsError, TrainingError
from cache_builder.steps import STAGE_FILE, finish_stage, read_record, write_record
from trainer.config import Experiment
from trainer.loop.settings import Watch
from trainer.processes import on_main_process, process_count
from trainer.stages.distill import distill
from trainer.stages.sft import fine_tune
from trainer.tuning.grid import Cell, Part, steps_of
from trainer.tuning.race import History, is_hopeless

RESULT = "result.json"
SHARED: dict[Part, tuple[str, ...]] = {
    "teacher": (),
    "student": ("shrunk",),
    "distill": ("shrunk", "teacher", "teacher-metric", "student", "losses", "crossfit"),
}
"""What a training reads in its run folder; a cell's is a link to the experiment's own."""


class Hopeless(Exception):
    """Ends a training that stays behind; never shown."""


@dataclass(frozen=True)
class Result:
    """What became of one cell."""

    cell: Cell
    history: History
    best_loss: float
    """∞ where it diverged."""
    best_step: int | None
    best_metric: float | None
    seconds: float | None
    """Of its training; None where that did not come to its end."""
    stopped: bool

    @property
    def diverged(self) -> bool:
        """Whether its loss was no number at some step."""
        return math.isinf(self.best_loss)

    @property
    def score(self) -> tuple[float, float]:
        """By what the best is chosen, the more the better: the metric where that is asked for, then the loss."""
        return (self.best_metric if self.best_metric is not None else 0.0, -self.best_loss)


@dataclass(frozen=True)
class Grid:
    """What the cells of one grid share, and where each lies."""

    experiment: Experiment
    part: Part
    method: str = "td"

    @property
    def folder(self) -> Path:
        return self.experiment.output_dir / "tune" / self.part

    @property
    def seed(self) -> int:
        return self.experiment.distill.seeds[0]

    def own(self, cell: Cell) -> Path:
        """Return a cell's run folder."""
        return self.folder / cell.digest(self.part, self.method, self.seed)

    def trained(self, cell: Cell) -> Path:
        """Return the folder of a cell's training, a stage."""
        return self.own(cell) / (f"distill/{self.method}/seed-{self.seed}" if self.part == "distill" else self.part)

    def is_done(self, cell: Cell) -> bool:
        """Say whether a cell has a result; its stage is then complete, also where the training was not."""
        return (self.own(cell) / RESULT).is_file() and (self.trained(cell) / STAGE_FILE).is_file()

    def until_distillation(self, cells: Sequence[Cell]) -> Experiment:
        """Return the experiment with all that the cells' distillations need made before them."""
        crossfit = any(cell.experiment.distill.aw_source == "crossfit" for cell in cells)
        needs = {"methods": [self.method], "aw_source": "crossfit" if crossfit else "train"}
        distillation = self.experiment.distill.model_copy(update=needs)
        return self.experiment.model_copy(update={"distill": distillation})


def best_of(results: Sequence[Result]) -> Result:
    """Return the best cell of those that were trained to their end; of equals the first.

    Raises:
        TrainingError: all have diverged.
    """
    finished = [result for result in results if not result.stopped and not result.diverged]
    if not finished:
        raise TrainingError(
            f"all {len(results)} cells diverged, so none is the best; try lower learning rates, or a wider dtype"
        )
    return max(finished, key=lambda result: result.score)


def tune(
    grid: Grid,
    cells: Sequence[Cell],
    prepared: Prepared,
    cache: Cache | None,
    told: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Train every cell, those that are done excepted, and return what became of each; `told` hears of each.

    Raises:
        ConfigError: nothing is held out, so no cell could be judged.
        OtherInputsError: a cell that is done was made from another model, corpus or cache, or by other processes.
    """
    if prepared.validation is None:
        raise ConfigError("nothing is held out, so no setting can be judged; give data.validation, or a fraction")
    for cell in filter(grid.is_done, cells):  # all of them before one is trained for hours
        _check(grid, cell, prepared, cache)
    results: list[Result] = []
    for cell in cells:
        finished = [result for result in results if not result.stopped and not result.diverged]
        leader = min(finished, key=lambda result: result.best_loss).history if finished else None
        on_main_process(partial(_reopen, grid, cell, leader))
        if not grid.is_done(cell):
            _train(grid, cell, prepared, cache, leader)
        results.append(read_result(grid.own(cell), cell))
        told(results[-1])
    return results


def read_result(folder: Path, cell: Cell) -> Result:
    """Read what a cell's folder records.

    Raises:
        CacheDamagedError: the record is not what was written.
    """
    value = read_record(folder / RESULT)
    kept = value.pop("history")
    history = History(tuple(kept["steps"]), tuple(kept["losses"]), kept["total_steps"])
    value.pop("values")
    loss = value.pop("best_loss")
    return Result(cell, history, best_loss=math.inf if loss is None else loss, **value)


def _check(grid: Grid, cell: Cell, prepared: Prepared, cache: Cache | None) -> None:
    """Refuse a finished cell that was made from something else, as its stage does; nothing is trained."""
    try:
        _run_stage(grid, cell, prepared, cache)
    except OtherInputsError as error:
        raise OtherInputsError(f"{error}\nremove {grid.folder} where no cell of it is of use any more") from None


def _reopen(grid: Grid, cell: Cell, leader: History | None) -> None:
    """Take back that a cell was stopped where that was by another grid's leader, and this one's would not."""
    if grid.is_done(cell):
        result = read_result(grid.own(cell), cell)
        if result.stopped and not is_hopeless(result.history, leader):
            (grid.trained(cell) / STAGE_FILE).unlink()


def _train(grid: Grid, cell: Cell, prepared: Prepared, cache: Cache | None, leader: History | None) -> None:
    seen: list[History] = []

    def watch(log: Sequence[Mapping[str, Any]], total_steps: int) -> None:
        seen.append(history_of(log, total_steps))
        if is_hopeless(seen[-1], leader):
            raise Hopeless

    try:
        _run_stage(grid, cell, prepared, cache, watch)
    except Hopeless:
        on_main_process(lambda: _record_stopped(grid, cell, seen[-1]))
    except DivergedError as error:
        stages = len(cache.checkpoints) if cache is not None else 1
        total_steps = steps_of(cell, grid.part, len(prepared.train), stages)
        history = seen[-1] if seen else History((), (), total_steps)
        if process_count() > 1:  # the others wait for this one in the middle of a step
            _record_diverged(grid, cell, history)
            raise TrainingError(f"{error}. That is this cell's result: give the same command again") from error
        _record_diverged(grid, cell, history)
    else:
        on_main_process(lambda: _record_finished(grid, cell))


def _run_stage(grid: Grid, cell: Cell, prepared: Prepared, cache: Cache | None, watch: Watch | None = None) -> None:
    """Train a cell in its folder; where that is complete, only compare what it was made from."""
    told = _own_experiment(grid, cell, cache)
    if grid.part == "distill":
        assert cache is not None
        distill(told, grid.method, grid.seed, cache, prepared, watch)
    else:
        fine_tune(told, prepared, grid.part, grid.trained(cell), watch=watch)


def _own_experiment(grid: Grid, cell: Cell, cache: Cache | None) -> Experiment:
    """Return the cell's experiment with a run folder of its own; a tuned teacher keeps one checkpoint, its last."""
    own = grid.own(cell)
    on_main_process(lambda: _link(own, SHARED[grid.part]))
    update: dict[str, Any] = {"run": cell.experiment.run.model_copy(update={"output_dir": str(own)})}
    if grid.part == "teacher":
        update["teacher"] = cell.experiment.teacher.model_copy(update={"checkpoints": 1})
    if cache is not None:
        update["cache"] = cell.experiment.cache.model_copy(update={"path": grid.experiment.cache_url})
    return cell.experiment.model_copy(update=update)


def _link(own: Path, names: Sequence[str]) -> None:
    own.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (own / name).is_symlink():
            (own / name).symlink_to(Path("..", "..", "..", name))


def _record_finished(grid: Grid, cell: Cell) -> None:
    log, stage = read_log(grid.trained(cell) / "log.json"), read_record(grid.trained(cell) / STAGE_FILE)
    seconds = next((entry["train_runtime"] for entry in log if "train_runtime" in entry), None)
    found = {key: stage.get(key) for key in ("best_step", "best_loss", "best_metric")}
    _record(grid, cell, history_of(log, stage["steps"]), seconds=seconds, stopped=False, **found)


def _record_stopped(grid: Grid, cell: Cell, history: History) -> None:
    loss, step = min(zip(history.losses, history.steps, strict=True))
    _record(grid, cell, history, best_step=step, best_loss=loss, best_metric=None, seconds=None, stopped=True)
    finish_stage(grid.trained(cell), {"ended": "stopped"})


def _record_diverged(grid: Grid, cell: Cell, history: History) -> None:
    _record(grid, cell, history, best_step=None, best_loss=None, best_metric=None, seconds=None, stopped=False)
    finish_stage(grid.trained(cell), {"ended": "diverged"})


def _record(grid: Grid, cell: Cell, history: History, **found: Any) -> None:
    """Write what became of a cell, and remove its weights."""
    for child in grid.trained(cell).iterdir():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)  # processes that diverge at one step remove it side by side
    write_record(grid.own(cell) / RESULT, {"values": cell.values, "history": asdict(history), **found})


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return a finished training's log."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def history_of(log: Sequence[Mapping[str, Any]], total_steps: int) -> History:
    """Return the held-out losses of a log; one that is no number is left out."""
    judged = [entry for entry in log if math.isfinite(entry.get("eval_loss", math.inf))]
    return History(tuple(e["step"] for e in judged), tuple(e["eval_loss"] for e in judged), total_steps)
