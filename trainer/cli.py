"""The `footsteps` command: every stage by itself, and `run`, which does them all and skips what is complete.

A user's mistake is one message and exit code 2; a bug keeps its traceback. What a command needs is imported by it, so
that `--help` does not wait for torch.
"""

import io
import os
import re
import sys
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console

from cache_builder.cli.cache import cache as cache_commands
from cache_builder.cli.options import takes_config, takes_manner
from cache_builder.errors import (
    CacheDamagedError,
    CacheMismatchError,
    ConfigError,
    UserError,
    printable,
    system_message,
)
from cache_builder.narration import manner, say
from trainer.options import put_settings_back, save_settings, takes_jobs
from trainer.planning.command import plan as plan_command
from trainer.processes import is_main_process
from trainer.starting.commands import demo, doctor, init
from trainer.tuning.command import tune as tune_command

if TYPE_CHECKING:
    from trainer.config import Experiment


def speaker() -> Console:
    """Return what prints for people: nothing where others are spoken to, and on the main process alone."""
    return Console(quiet=not is_main_process() or manner() != "text", markup=False)


def tell(what: str, path: object) -> None:
    """Say where a result is."""
    if is_main_process():
        say("result", f"{what}: {path}", what=what, path=str(path))


QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""What keeps transformers' bars and warnings out of ours; read when it is imported, which most commands need not do."""


TRAIN_EXTRA = {
    *("accelerate", "datasets", "matplotlib", "peft", "pyarrow", "safetensors", "tokenizers", "torch", "tqdm"),
    *("transformers", "yaml"),
}
"""Modules that a small install lacks, which reads, checks and copies caches."""


def experiment_schema() -> "type[Experiment]":
    """Return what a config is read into; the commands of `footsteps cache` ask for it."""
    from trainer.config import Experiment

    return Experiment


class Commands(click.Group):
    """Prints a user's mistake as one message and exits with 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except CacheMismatchError as error:
            if is_main_process():  # another may have read as "before" what this one wrote
                put_settings_back(context)
            refuse(context, str(error))
        except CacheDamagedError as error:
            refuse(context, with_repair(str(error)))
        except UserError as error:
            refuse(context, str(error))
        except ModuleNotFoundError as error:
            if error.name not in TRAIN_EXTRA:
                raise
            command = f"footsteps {context.invoked_subcommand}"
            refuse(context, f'{command} needs {error.name}, which is not installed; pip install "footsteps[train]"')
        except Exception as error:
            message = system_message(error)
            if message is None:
                raise
            refuse(context, message)


def with_repair(message: str) -> str:
    """Add to what is damaged, where the message says no more, how a cache is repaired."""
    if re.search("remove|restore|again", message.rpartition("damaged")[2], re.IGNORECASE):
        return message
    return f"{message}; restore it from a copy, or `footsteps cache build CONFIG --repair` builds it again"


def refuse(context: click.Context, message: str) -> NoReturn:
    """Print what the user can mend and exit with 2."""
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(printable(message), err=True)
    context.exit(2)


def load(config: Path, overrides: tuple[str, ...]) -> "Experiment":
    """Read the experiment and save it, resolved, in its run folder."""
    from cache_builder.config import load_experiment
    from trainer.config import Experiment

    experiment = load_experiment(Experiment, config, overrides)
    save_settings(experiment)
    return experiment


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="footsteps")
@click.pass_context
def main(context: click.Context) -> None:
    """Distil a fine-tuned teacher into a smaller student, without the teacher in memory."""
    context.obj = experiment_schema
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding cannot write is written out
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


@main.command()
@takes_config
@takes_manner
@takes_jobs()
def run(config: Path, overrides: tuple[str, ...], jobs: int) -> None:
    """Do every stage, skipping what is complete.

    `footsteps plan CONFIG` says beforehand what that takes.
    """
    from trainer.run import run_experiment

    run_experiment(load(config, overrides), speaker(), jobs)


@main.command()
@takes_config
@takes_manner
def shrink(config: Path, overrides: tuple[str, ...]) -> None:
    """Make the student out of a larger model's parts.

    Which layers, neurons and heads stay, [shrink] says.
    """
    from cache_builder.data.prepare import Prepared
    from trainer.stages.shrink import say_sizes, shrink_student

    experiment = load(config, overrides)
    result = shrink_student(experiment, Prepared(experiment))
    say_sizes(result, speaker())
    tell("student", result["student"]["model"])


@main.command()
@takes_config
@takes_manner
@click.argument("role", type=click.Choice(["teacher", "student"]))
def sft(config: Path, overrides: tuple[str, ...], role: str) -> None:
    """Fine-tune the teacher, keeping its checkpoints, or the student."""
    from cache_builder.data.prepare import Prepared
    from trainer.stages.sft import sft_student, sft_teacher

    experiment = load(config, overrides)
    if role == "teacher" and isinstance(experiment.teacher.checkpoints, list):
        raise ConfigError("teacher.checkpoints lists finished checkpoints, so there is no teacher to fine-tune")
    train = sft_teacher if role == "teacher" else sft_student
    tell(role, train(experiment, Prepared(experiment)))


@main.command()
@takes_config
@takes_manner
def losses(config: Path, overrides: tuple[str, ...]) -> None:
    """Compute the student SFT's losses, for adaptive weighting.

    Its loss on every training sequence.
    """
    from cache_builder.cache.reader import open_cache
    from cache_builder.data.prepare import Prepared
    from trainer.stages.crossfit import needs_crossfit, write_crossfit_losses
    from trainer.stages.student_losses import write_student_losses

    experiment = load(config, overrides)
    cache, prepared = open_cache(experiment.cache_url, local_copy=experiment.local_copy), Prepared(experiment)
    path = write_student_losses(experiment, cache, prepared.tokenizer.pad_token_id)
    if needs_crossfit(experiment):
        path = write_crossfit_losses(experiment, prepared, cache)
    tell("losses", path)


@main.command()
@takes_config
@takes_manner
@click.option(
    "--method", "methods", multiple=True, help="Only this method; may be repeated. Unless given, the config's."
)
@click.option("--seed", "seeds", multiple=True, type=int, help="Only this seed; may be repeated.")
@takes_jobs()
def distill(
    config: Path, overrides: tuple[str, ...], methods: tuple[str, ...], seeds: tuple[int, ...], jobs: int
) -> None:
    """Train students from the cache."""
    from cache_builder.cache.reader import open_cache
    from cache_builder.data.prepare import Prepared
    from trainer.stages.students import train_students

    experiment = load(config, overrides)
    cache, prepared = open_cache(experiment.cache_url, local_copy=experiment.local_copy), Prepared(experiment)
    wanted = product(seeds or experiment.distill.seeds, methods or experiment.distill.methods)
    for folder in train_students(experiment, ((method, seed) for seed, method in wanted), prepared, cache, jobs):
        tell("student", folder)


@main.command()
@takes_config
@takes_manner
def evaluate(config: Path, overrides: tuple[str, ...]) -> None:
    """Judge the teacher and every finished student on the test set."""
    from cache_builder.cache.reader import open_cache
    from cache_builder.data.prepare import Prepared
    from trainer.report.page import results_tables
    from trainer.stages.evaluate_run import evaluate_run

    experiment = load(config, overrides)
    evaluate_run(experiment, Prepared(experiment), open_cache(experiment.cache_url), speaker())
    if is_main_process():
        speaker().print(results_tables(experiment.output_dir))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the report; RUN/report unless given.")
@click.option("--remote", is_flag=True, help="Trust the runs: open caches at addresses and below $VARIABLES.")
@click.option("--watch", is_flag=True, help="Write it again whenever the runs have changed, until Ctrl-C.")
@click.option("--every", default=30, show_default=True, type=click.IntRange(1), help="Seconds between two looks.")
def report(runs: tuple[Path, ...], output: Path | None, remote: bool, watch: bool, every: int) -> None:
    """Write table, plots and one self-contained HTML page.

    For one run folder, or several side by side.
    """
    from trainer.report.page import write_report
    from trainer.report.watch import watch_report

    def told(page: Path) -> None:
        tell(f"report, {time.strftime('%H:%M:%S')}", page)

    if is_main_process():
        page = (
            watch_report(list(runs), output, every, remote=remote, told=told)
            if watch
            else write_report(list(runs), output, remote=remote)
        )
        tell("report", page)


@main.command()
@click.option(
    "--output", default=Path("runs/toy"), show_default=True, type=click.Path(path_type=Path), help="Folder of the page."
)
@click.option("--seeds", default=40, show_default=True, type=click.IntRange(1), help="Paired repetitions.")
@click.option("--examples", default=500, show_default=True, type=click.IntRange(1), help="Training points.")
@click.option("--steps", default=2000, show_default=True, type=click.IntRange(1), help="Steps of the student.")
def toy(output: Path, seeds: int, examples: int, steps: int) -> None:
    """Reproduce the paper's toy, in a minute.

    Its Fig. 2: does adaptive weighting help where the teacher is weak?
    """
    from trainer.toy.page import run_toy, toy_table

    speaker().print(toy_table(run_toy(output, seeds, examples, steps)))
    tell("toy", output / "index.html")


@main.group()
def export() -> None:
    """Hand a run to other programs."""


@export.command("lm-eval")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
def export_lm_eval(folder: Path) -> None:
    """Write a run's tasks for lm-evaluation-harness.

    YAML and JSONL, in RUN/lm-eval.
    """
    from cache_builder.config import load_experiment
    from cache_builder.data.prepare import Prepared
    from trainer.config import Experiment
    from trainer.stages.export_harness import export_tasks

    experiment = load_experiment(Experiment, folder / "config.toml")
    tell("tasks", export_tasks(experiment, Prepared(experiment)))


@main.command("config")
def config_help() -> None:
    """List every setting with its type, default and meaning.

    Behind them, what of TrainingArguments is refused, and what to set instead.
    """
    from trainer.config_help import describe_config

    click.echo(describe_config())


main.add_command(cache_commands)
main.add_command(plan_command)
main.add_command(tune_command)
main.add_command(demo)
main.add_command(init)
main.add_command(doctor)

if __name__ == "__main__":
    main()
