"""What `run` would do, said without loading a model: stages, checkpoints, positions, steps, estimated cache bytes."""

import math

from rich.table import Table
from rich.text import Text

from cache_builder.config import CacheConfig
from cache_builder.corpus import open_corpus
from cache_builder.data import load_splits
from cache_builder.errors import MissingError, UserError
from trainer.config import Experiment
from trainer.loop import steps_of

BYTES_PER_TOKEN = 4
"""UTF-8 bytes of English text per token: a rule of thumb, used only until the corpus is tokenised."""


def describe_plan(experiment: Experiment) -> Table:
    """Return the stages of a run as a table."""
    sequences, positions, source = _size(experiment)
    checkpoints = experiment.teacher.checkpoints
    count = checkpoints if isinstance(checkpoints, int) else len(checkpoints)
    distill, cache = experiment.distill, experiment.cache
    table = Table("stage", "what", "size", title=f"footsteps run → {experiment.output_dir}")
    table.add_row(
        "corpus", f"{experiment.data.source} data, {source}", f"{sequences:,} sequences, {positions:,} positions"
    )
    if isinstance(checkpoints, int):
        steps = steps_of(experiment.sft.teacher, sequences, experiment.sft.teacher.num_train_epochs)
        table.add_row("sft teacher", experiment.teacher.model, f"{steps:,} steps, {count} checkpoints kept")
    else:
        table.add_row("teacher", experiment.teacher.model, f"{count} given checkpoints")
    cache_bytes = count * positions * record_bytes(cache)
    table.add_row(
        "cache build",
        f"{experiment.cache_url}: top_k {cache.top_k}, {cache.tail_samples} tail samples",
        f"{count} × {positions:,} positions, at most {format_bytes(cache_bytes)} ({record_bytes(cache)} B a position, "
        "before compression)",
    )
    steps = steps_of(experiment.sft.student, sequences, experiment.sft.student.num_train_epochs)
    table.add_row("sft student", experiment.student.model, f"{steps:,} steps")
    table.add_row("losses", "of the student SFT on the training data", f"{sequences:,} sequences")
    stage_steps = steps_of(distill, sequences, distill.epochs_per_stage)
    students = len(distill.methods) * len(distill.seeds)
    table.add_row(
        "distill",
        f"{', '.join(distill.methods)}; seeds {', '.join(map(str, distill.seeds))}",
        f"{students} students × {count} stages × {stage_steps:,} steps",
    )
    table.add_row("evaluate", "teacher, student SFT and every student", f"{students + 2} models")
    table.add_row("report", str(experiment.output_dir / "report" / "index.html"), "")
    return table


def record_bytes(cache: CacheConfig) -> int:
    """Return the bytes of one position before compression: ids, log-probabilities, tail samples, three scalars."""
    return cache.top_k * (3 + 2) + cache.tail_samples * 3 + 12


def format_bytes(count: float) -> str:
    """Write a number of bytes with a unit that keeps it short."""
    power = min(4, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:,.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _size(experiment: Experiment) -> tuple[int, int, Text]:
    try:
        corpus = open_corpus(experiment.output_dir / "corpus" / "train")
        return len(corpus), corpus.n_positions, Text("tokenised")
    except MissingError:
        pass
    try:
        train = load_splits(experiment.data, experiment.run.seed)["train"]
    except (UserError, OSError) as error:
        return 0, 0, Text(f"not to be read here: {error}", style="yellow")
    characters = sum(
        len(message["content"].encode())
        for example in train
        for message in example["messages"]
        if message["role"] == "assistant"
    )
    positions = characters // BYTES_PER_TOKEN + len(train)
    return len(train), positions, Text(f"positions estimated at {BYTES_PER_TOKEN} bytes a token")
