"""The `footsteps` command: every stage by itself, and `run`, which does them all and skips what is complete.

A user's mistake is one message and exit code 2; a bug keeps its traceback.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import transformers
from rich.console import Console

from cache_builder.cli import cache as cache_commands
from cache_builder.config import load_experiment, save_experiment
from cache_builder.errors import ConfigError, UserError
from cache_builder.prepare import Prepared
from cache_builder.reader import open_cache
from trainer.config import Experiment
from trainer.config_help import describe_config
from trainer.distill import distill as distill_student
from trainer.judge import evaluate_models
from trainer.plan import describe_plan
from trainer.report import results_table, write_report
from trainer.run import run_experiment
from trainer.sft import sft_student, sft_teacher
from trainer.student_losses import write_student_losses

console = Console()


class Commands(click.Group):
    """Prints a user's mistake as one message and exits with 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except UserError as error:
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(error, err=True)
            context.exit(2)


def takes_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the CONFIG argument and the `--set` option."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated."
    )(command)
    return click.argument("config", type=click.Path(path_type=Path))(command)


def load(config: Path, overrides: tuple[str, ...]) -> Experiment:
    """Read the experiment and save it, resolved, in its run folder."""
    experiment = load_experiment(Experiment, config, overrides)
    save_experiment(experiment, experiment.output_dir / "config.toml")
    return experiment


@click.group(cls=Commands, context_settings={"obj": Experiment, "help_option_names": ["-h", "--help"]})
def main() -> None:
    """Distil a fine-tuned teacher into a smaller student, without the teacher in memory."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)


@main.command()
@takes_config
@click.option("--plan", is_flag=True, help="Only print what would be done; no model is loaded.")
def run(config: Path, overrides: tuple[str, ...], plan: bool) -> None:
    """Do every stage, skipping what is complete."""
    if plan:
        console.print(describe_plan(load_experiment(Experiment, config, overrides)))
        return
    run_experiment(load(config, overrides), console)


@main.command()
@takes_config
@click.argument("role", type=click.Choice(["teacher", "student"]))
def sft(config: Path, overrides: tuple[str, ...], role: str) -> None:
    """Fine-tune the teacher, keeping its checkpoints, or the student."""
    experiment = load(config, overrides)
    if role == "student":
        folder = sft_student(experiment, Prepared(experiment))
    elif isinstance(experiment.teacher.checkpoints, list):
        raise ConfigError("teacher.checkpoints lists finished checkpoints, so there is no teacher to fine-tune")
    else:
        folder = sft_teacher(experiment, Prepared(experiment))
    console.print(f"{role}: {folder}")


@main.command()
@takes_config
def losses(config: Path, overrides: tuple[str, ...]) -> None:
    """Compute the student SFT's loss on every training sequence, for adaptive weighting."""
    experiment = load(config, overrides)
    prepared = Prepared(experiment)
    path = write_student_losses(experiment, open_cache(experiment.cache_url), prepared.tokenizer.pad_token_id)
    console.print(f"losses: {path}")


@main.command()
@takes_config
@click.option(
    "--method", "methods", multiple=True, help="Only this method; may be repeated. All of the config unless given."
)
@click.option("--seed", "seeds", multiple=True, type=int, help="Only this seed; may be repeated.")
def distill(config: Path, overrides: tuple[str, ...], methods: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Train students from the cache."""
    experiment = load(config, overrides)
    prepared, cache = Prepared(experiment), open_cache(experiment.cache_url)
    for method in methods or tuple(experiment.distill.methods):
        for seed in seeds or tuple(experiment.distill.seeds):
            console.print(f"student: {distill_student(experiment, method, seed, cache, prepared)}")


@main.command()
@takes_config
def evaluate(config: Path, overrides: tuple[str, ...]) -> None:
    """Judge the teacher and every finished student on the test set."""
    experiment = load(config, overrides)
    evaluate_models(experiment, Prepared(experiment), open_cache(experiment.cache_url), console)
    console.print(results_table(experiment.output_dir))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the report; RUN/report unless given.")
def report(runs: tuple[Path, ...], output: Path | None) -> None:
    """Write the table, the plots and one self-contained HTML page for one or more run folders."""
    console.print(f"report: {write_report(list(runs), output)}")


@main.command("config")
def config_help() -> None:
    """List every setting with its type, default and meaning."""
    console.print(describe_config(Experiment))


main.add_command(cache_commands)

if __name__ == "__main__":
    sys.exit(main())
