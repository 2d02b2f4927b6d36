"""`footsteps tune`: the best settings of a fine-tuning or of the distillation, by held-out data alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from cache_builder.cli.options import takes_config, takes_manner
from cache_builder.errors import ConfigError
from cache_builder.narration import manner, say

if TYPE_CHECKING:
    from trainer.tuning.tune import Result

WIDTH = 120
"""Columns where there is no terminal."""
NEXT = {
    "teacher": "footsteps tune {} student",
    "student": "footsteps tune {} distill",
    "distill": "footsteps run {}",
}
"""What goes on from a part's best config."""


@click.command()
@takes_config
@takes_manner
@click.argument("part", type=click.Choice(["teacher", "student", "distill"]), default="distill")
@click.option("--grid", "options", multiple=True, metavar="FIELD=V,V…", help="Values of a field; may be repeated.")
@click.option(
    "--method", default="td", show_default=True, help="What `distill` is tuned for; the best serves them all."
)
@click.option("--dry-run", is_flag=True, help="Say what it will cost, and stop.")
def tune(
    config: Path, overrides: tuple[str, ...], part: str, options: tuple[str, ...], method: str, dry_run: bool
) -> None:
    """Try a grid of settings, judged on held-out data.

    Of the teacher's or the student's fine-tuning, or of the distillation unless told otherwise. Each writes a config
    with its best, from which the next one goes on.

    \b
    footsteps tune my.toml teacher
    footsteps tune runs/my/tune/teacher/best.toml student
    footsteps tune runs/my/tune/student/best.toml distill --grid learning_rate=1e-3,3e-3
    footsteps run runs/my/tune/distill/best.toml
    """
    from typing import cast

    from cache_builder.config import load_experiment
    from cache_builder.data.prepare import Prepared
    from trainer.config import Experiment
    from trainer.methods.methods import get_method
    from trainer.processes import is_main_process, on_main_process, only_run_in
    from trainer.run import until_distillation
    from trainer.stages.shrink import shrink_student
    from trainer.tuning.cost import cost_of
    from trainer.tuning.grid import Part, cells_of, default_grid, parse_grid
    from trainer.tuning.page import cautions, facts_of, records_of, table_of, write_grid
    from trainer.tuning.tune import Grid, best_of
    from trainer.tuning.tune import tune as train_all

    spoken = is_main_process() and manner() == "text"
    console = Console(quiet=not spoken, markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    experiment, which = load_experiment(Experiment, config, overrides), cast(Part, part)
    if which == "teacher" and isinstance(experiment.teacher.checkpoints, list):
        raise ConfigError("teacher.checkpoints lists finished checkpoints, so there is no teacher to tune")
    get_method(method)
    cells = cells_of(experiment, which, parse_grid(options) or default_grid(experiment, which))
    grid = Grid(experiment, which, method)
    if is_main_process():
        cost = cost_of(grid, cells)
        say("tuning", cost, part=part, cells=[dict(cell.values) for cell in cells], cost=cost)
    if dry_run:
        return
    with only_run_in(grid.folder, f"tuning the {part}"):
        prepared = Prepared(experiment)
        if which == "student" and experiment.shrink is not None:
            shrink_student(experiment, prepared)
        cache = until_distillation(grid.until_distillation(cells), prepared, console) if which == "distill" else None
        results = train_all(grid, cells, prepared, cache, _say_tried)
        paths = on_main_process(lambda: write_grid(grid, results)) or []
    console.print(table_of(records_of(results), f"{part}: held-out data alone"))
    said = cautions(results)
    for line in (*said, *(str(path) for path in paths)):
        console.print(line)
    if paths:
        best = facts_of(best_of(results))
        say("tuned", f"next: {NEXT[which].format(paths[-1])}", part=part, **best, cautions=said, config=str(paths[-1]))


def _say_tried(result: "Result") -> None:
    from trainer.processes import is_main_process
    from trainer.tuning.page import facts_of, line_of

    if is_main_process():
        say("tried", line_of(result), **facts_of(result))
