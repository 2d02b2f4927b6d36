"""What every model of a run loses on held-out data: the table of a run that has nothing to judge, such as a healing.

teacher's checkpoints   measured while the cache was built         student SFT, students   their best state's
shrunk student          before any training, on a part of the held-out data
"""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cache_builder.cache.reader import Cache
from cache_builder.steps import STAGE_FILE, read_record
from trainer.config import Experiment
from trainer.stages.shrink import FOLDER


def held_out_losses(experiment: Experiment, cache: Cache) -> dict[str, float]:
    """Return the loss in nats per position of each model that has one, oldest first; none where nothing is held out."""
    run = experiment.output_dir
    found: dict[str, float | None] = {f"teacher, {name}": cache.held_out(name) for name in cache.checkpoints}
    if experiment.shrink is not None:
        shrunk = _result(run / FOLDER)
        if shrunk.get("held_out") == "held-out data":
            found["student as shrunk"] = shrunk["student"]["loss"]
    found["student SFT"] = _result(run / "student").get("best_loss")
    for method in experiment.distill.methods:
        for seed in experiment.distill.seeds:
            found[f"{method}, seed {seed}"] = _result(run / "distill" / method / f"seed-{seed}").get("best_loss")
    return {name: loss for name, loss in found.items() if loss is not None}


def held_out_table(losses: dict[str, float]) -> Table:
    """Return the losses for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model")
    table.add_column("held-out loss, nats per position", justify="right")
    for name, loss in losses.items():
        table.add_row(name, f"{loss:.3f}")
    return table


def _result(folder: Path) -> dict[str, Any]:
    return read_record(folder / STAGE_FILE) if (folder / STAGE_FILE).is_file() else {}
