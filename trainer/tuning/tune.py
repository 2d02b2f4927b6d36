"""Train the cells of a grid one after another from one cache, stop the hopeless, and name the best by validation data.

tune/<part>/<digest>/          a run folder of its own; its weights are removed once it is judged
tune/<part>/<digest>/result.json        values, held-out losses, best loss and metric, whether it was stopped; sealed
tune/<part>/grid.csv  grid.png  best.toml     the table, the plot, and the config with the best values for every method

The test examples are neither answered nor scored here.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache_builder.cache.reader import Cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError
from cache_builder.steps import STAGE_FILE, read_record, write_record
from trainer.config import Experiment
from trainer.processes import on_main_process
from trainer.stages.distill import distill
from trainer.stages.sft import fine_tune
from trainer.tuning.grid import Cell, Part
from trainer.tuning.race import History, is_hopeless

RESULT = "result.json"
SHARED: dict[Part, tuple[str, ...]] = {
    "teacher": (),
    "student": ("shrunk",),
    "distill": ("shrunk", "student", "losses", "crossfit"),
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
    best_step: int
    best_metric: float | None
    seconds: float | None
    """Of its training; None where it was stopped."""
    stopped: bool

    @property
    def score(self) -> tuple[float, float]:
        """By what the best is chosen, the more the better: the metric where that is asked for, then the loss."""
        return (self.best_metric if self.best_metric is not None else 0.0, -self.best_loss)


def best_of(results: Sequence[Result]) -> Result:
    """Return the best cell of those that were trained to their end; of equals the first."""
    return max((result for result in results if not result.stopped), key=lambda result: result.score)


def tune(
    experiment: Experiment,
    part: Part,
    cells: Sequence[Cell],
    prepared: Prepared,
    cache: Cache | None,
    method: str = "td",
    told: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Train every cell, those that are done excepted, and return what became of each; `told` hears of each.

    Raises:
        ConfigError: nothing is held out, so no cell could be judged.
    """
    if prepared.validation is None:
        raise ConfigError("nothing is held out, so no setting can be judged; give data.validation, or a fraction")
    folder, seed = experiment.output_dir / "tune" / part, experiment.distill.seeds[0]
    results: list[Result] = []
    for cell in cells:
        finished = [result for result in results if not result.stopped]
        leader = min(finished, key=lambda result: result.best_loss).history if finished else None
        own = folder / cell.digest(part, method, seed)
        if not (own / RESULT).is_file():
            _train(experiment, cell, part, own, prepared, cache, method, seed, leader)
        results.append(read_result(own, cell))
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
    return Result(cell, history, **value)


def _train(
    experiment: Experiment,
    cell: Cell,
    part: Part,
    own: Path,
    prepared: Prepared,
    cache: Cache | None,
    method: str,
    seed: int,
    leader: History | None,
) -> None:
    seen: list[History] = []

    def watch(log: Sequence[Mapping[str, Any]], total_steps: int) -> None:
        seen.append(history_of(log, total_steps))
        if is_hopeless(seen[-1], leader):
            raise Hopeless

    told = _own_experiment(experiment, cell, part, own, cache)
    trained = own / (f"distill/{method}/seed-{seed}" if part == "distill" else part)
    stopped = False
    try:
        if part == "distill":
            assert cache is not None
            distill(told, method, seed, cache, prepared, watch)
        else:
            fine_tune(told, prepared, part, trained, watch=watch)
    except Hopeless:
        stopped = True
    on_main_process(lambda: _record(own, trained, cell, seen[-1] if stopped else None))


def _own_experiment(experiment: Experiment, cell: Cell, part: Part, own: Path, cache: Cache | None) -> Experiment:
    """Return the cell's experiment with a run folder of its own; a tuned teacher keeps one checkpoint, its last."""
    on_main_process(lambda: _link(own, SHARED[part]))
    update: dict[str, Any] = {"run": cell.experiment.run.model_copy(update={"output_dir": str(own)})}
    if part == "teacher":
        update["teacher"] = cell.experiment.teacher.model_copy(update={"checkpoints": 1})
    if cache is not None:
        update["cache"] = cell.experiment.cache.model_copy(update={"path": experiment.cache_url})
    return cell.experiment.model_copy(update=update)


def _link(own: Path, names: Sequence[str]) -> None:
    own.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (own / name).is_symlink():
            (own / name).symlink_to(Path("..", "..", "..", name))


def _record(own: Path, trained: Path, cell: Cell, stopped_at: History | None) -> None:
    """Write what became of a cell, and remove its weights."""
    if stopped_at is None:
        log, stage = read_log(trained / "log.json"), read_record(trained / STAGE_FILE)
        history = history_of(log, stage["steps"])
        found = {key: stage.get(key) for key in ("best_step", "best_loss", "best_metric")}
        seconds = next((entry["train_runtime"] for entry in log if "train_runtime" in entry), None)
    else:
        history, seconds = stopped_at, None
        loss, step = min(zip(history.losses, history.steps, strict=True))
        found = {"best_step": step, "best_loss": loss, "best_metric": None}
    for child in trained.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
    told = {"values": cell.values, "history": asdict(history), "seconds": seconds, "stopped": stopped_at is not None}
    write_record(own / RESULT, told | found)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return a finished training's log."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def history_of(log: Sequence[Mapping[str, Any]], total_steps: int) -> History:
    """Return the held-out losses of a log."""
    judged = [entry for entry in log if "eval_loss" in entry]
    return History(tuple(e["step"] for e in judged), tuple(e["eval_loss"] for e in judged), total_steps)
