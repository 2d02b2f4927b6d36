"""What a grid will take, told before it starts: the cells without a result, and the stages that are made before them.

Steps are known wherever the data is; operations where the sizes of the models are, hours where this run has a rate.
"""

from collections.abc import Sequence

from cache_builder.cache.reader import open_cache
from cache_builder.errors import MissingError, ModelError, UserError
from cache_builder.narration import duration
from cache_builder.steps import STAGE_FILE
from trainer.config import Experiment
from trainer.planning.corpus_size import corpus_size
from trainer.planning.model_size import ModelSize, model_size, shrunk_size
from trainer.planning.plan import FORWARD, TRAINING, Plan, Stage
from trainer.planning.rates import measured_rates
from trainer.stages.crossfit import needs_crossfit
from trainer.tuning.grid import EPOCHS, Cell, section_of, steps_of
from trainer.tuning.race import FROM_SHARE, IN_A_ROW, PACE
from trainer.tuning.tune import Grid

FOLDERS = {"shrink": "shrunk", "sft teacher": "teacher", "sft student": "student", "losses": "losses"}
"""Stages before a distillation, and the folder of each; before a student's fine-tuning there is the first alone."""


def cost_of(grid: Grid, cells: Sequence[Cell]) -> str:
    """Say how many cells, steps and operations a grid has, and how long that takes where this run has measured it."""
    plan = _plan_of(grid.experiment)
    left = [cell for cell in cells if not grid.is_done(cell)]
    before = _stages_before(grid, cells, plan)
    if not left and not before:
        return f"{_cells(len(cells))}, and none is left to train"
    model = plan.teacher if grid.part == "teacher" else plan.student
    stages = plan.checkpoints if grid.part == "distill" else 1
    steps = sum(steps_of(cell, grid.part, plan.corpus.sequences, stages) for cell in left)
    training = 0.0
    for cell in left:
        section = section_of(cell.experiment, grid.part)
        training += plan.training_flops(model, section, stages * getattr(section, EPOCHS[grid.part]))
    told = f"{_cells(len(left))}{_others(len(cells) - len(left))}, {steps:,} steps"
    if before:
        told += f", before them {', '.join(f'{stage.name} ({stage.size})' for stage in before)}"
    needs_teacher = any(stage.name in ("sft teacher", "cache build", "cross-fit") for stage in before)
    return (
        f"{told}; {_work(plan, training, before, [model, *([plan.teacher] if needs_teacher else [])])}. It is less "
        f"where a cell is stopped: its best held-out loss is above the best cell's at {PACE:g} of its share of the "
        f"steps, {IN_A_ROW} times in a row, from {FROM_SHARE:.0%} on"
    )


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"


def _others(done: int) -> str:
    return f" (and {done} with a result)" if done else ""


def _work(plan: Plan, training: float, before: Sequence[Stage], models: Sequence[ModelSize]) -> str:
    """Say operations and time of the cells' training and the stages before it."""
    for model in models:
        if not model.parameters:
            return f"operations not known, as the size of {model.name!r} is not"
    flops = {kind: sum(stage.flops for stage in before if stage.kind == kind) for kind in (FORWARD, TRAINING)}
    flops[TRAINING] += training
    needed, rates = [kind for kind in flops if flops[kind]], measured_rates(plan)
    took = "time not known"
    if all(kind in rates for kind in needed):
        seconds = sum(flops[kind] / rates[kind].flops_per_second for kind in needed)
        took = f"about {duration(seconds)} ({'; '.join(rates[kind].source for kind in needed)})"
    return f"{sum(flops.values()):.2g} operations, {took}"


def _plan_of(experiment: Experiment) -> Plan:
    """Return the experiment's plan; a model whose size is not known here counts no operations and gives no rate."""
    rows, student = experiment.tokenizer.train_vocab_size, experiment.student.model
    sizes = []
    for location, shrink in ((experiment.teacher.model, None), (student, experiment.shrink)):
        try:
            sizes.append(shrunk_size(location, shrink, rows) if shrink else model_size(location, rows))
        except (MissingError, ModelError):  # perhaps the hub has it, or it brings its own code
            sizes.append(ModelSize(location, 0, 0, 0, 0, 0, 0, "not known"))
    return Plan(experiment, corpus_size(experiment), *sizes)


def _stages_before(grid: Grid, cells: Sequence[Cell], plan: Plan) -> list[Stage]:
    """Return the stages that the cells need and that are not finished."""
    experiment, folder = grid.experiment, grid.experiment.output_dir
    folders: dict[str, str] = {"teacher": {}, "student": {"shrink": "shrunk"}, "distill": FOLDERS}[grid.part]
    found = []
    for stage in plan.stages():
        made = stage.name in folders and not (folder / folders[stage.name] / STAGE_FILE).is_file()
        if made or (stage.name == "cache build" and grid.part == "distill" and not _is_built(plan)):
            found.append(stage)
    if grid.part != "distill":
        return found
    if experiment.distill.best == "metric" and not (folder / "teacher-metric" / STAGE_FILE).is_file():
        found.append(Stage("judge", "", f"{plan.checkpoints} checkpoints"))
    if needs_crossfit(grid.until_distillation(cells)):
        roles = ["student", *(["teacher"] if plan.fine_tunes else [])]
        if not all((folder / "crossfit" / role / "losses" / STAGE_FILE).is_file() for role in roles):
            # both halves together are one fine-tuning on all of the data
            flops = sum(_fine_tuning(plan, role) for role in roles)
            found.append(Stage("cross-fit", "", f"{' and '.join(roles)}, by halves", TRAINING, flops))
    return found


def _fine_tuning(plan: Plan, role: str) -> float:
    model, section = getattr(plan, role), getattr(plan.experiment.sft, role)
    return plan.training_flops(model, section, section.num_train_epochs)


def _is_built(plan: Plan) -> bool:
    try:
        return len(open_cache(plan.experiment.cache_url).checkpoints) >= plan.checkpoints
    except UserError:
        return False
