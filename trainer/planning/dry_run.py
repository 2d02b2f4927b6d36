"""What `run` would do, said without loading a model: stages, checkpoints, positions, steps, bytes at most.

`footsteps run CONFIG --plan` prints this alone; `footsteps plan CONFIG` prints it above time, memory and money
(trainer/planning/tables.py), from the same sizes.
"""

from rich.table import Table
from rich.text import Text

from cache_builder.format.size import record_bytes
from trainer.config import Experiment
from trainer.planning.units import format_bytes
from trainer.planning.workload import CorpusSize, corpus_size


def describe_plan(experiment: Experiment, corpus: CorpusSize | None = None) -> Table:
    """Return the stages of a run as a table; of the corpus given, or of the experiment's."""
    corpus = corpus or corpus_size(experiment)
    sequences, positions = corpus.sequences, corpus.positions
    checkpoints = experiment.teacher.checkpoints
    count = checkpoints if isinstance(checkpoints, int) else len(checkpoints)
    distill, cache = experiment.distill, experiment.cache
    table = Table("stage", "what", "size", title=f"footsteps run → {experiment.output_dir}")
    table.add_row(
        "corpus",
        Text(f"{experiment.data.source} data, {corpus.source}", style="yellow" if corpus.problem else ""),
        f"{sequences:,} sequences, {positions:,} positions",
    )
    if isinstance(checkpoints, int):
        steps = experiment.sft.teacher.steps(sequences, experiment.sft.teacher.num_train_epochs)
        table.add_row("sft teacher", experiment.teacher.model, f"{steps:,} steps, {count} checkpoints kept")
    else:
        table.add_row("teacher", experiment.teacher.model, f"{count} given checkpoints")
    per_position = record_bytes(cache.top_k, cache.tail_samples)
    table.add_row(
        "cache build",
        f"{experiment.cache_url}: top_k {cache.top_k}, {cache.tail_samples} tail samples",
        f"{count} × {positions:,} positions, at most {format_bytes(count * positions * per_position)} "
        f"({per_position} B a position, before compression)",
    )
    steps = experiment.sft.student.steps(sequences, experiment.sft.student.num_train_epochs)
    table.add_row("sft student", experiment.student.model, f"{steps:,} steps")
    table.add_row("losses", "of the student SFT on the training data", f"{sequences:,} sequences")
    stage_steps = distill.steps(sequences, distill.epochs_per_stage)
    students = len(distill.methods) * len(distill.seeds)
    table.add_row(
        "distill",
        f"{', '.join(distill.methods)}; seeds {', '.join(map(str, distill.seeds))}",
        f"{students} students × {count} stages × {stage_steps:,} steps",
    )
    table.add_row("evaluate", "teacher, student SFT and every student", f"{students + 2} models")
    table.add_row("report", str(experiment.output_dir / "report" / "index.html"), "")
    return table
