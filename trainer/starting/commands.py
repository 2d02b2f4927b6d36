"""`footsteps demo|init|doctor`: what they read, in which order they call, and what they print."""

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from cache_builder.cli.options import set_option, takes_manner
from cache_builder.errors import printable
from cache_builder.narration import manner
from trainer.options import save_settings, takes_jobs
from trainer.processes import is_main_process


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="The run's folder; runs/demo unless given.")
@click.option("--quick", is_flag=True, help="Every stage in a minute, in runs/demo-quick; its figures mean nothing.")
@set_option
@takes_manner
@takes_jobs(min(2, os.cpu_count() or 1))
def demo(output: Path | None, quick: bool, overrides: tuple[str, ...], jobs: int) -> None:
    """Run the whole pipeline on made-up data, in minutes.

    On a CPU; it ends with a table and a report.
    """
    import torch

    from trainer.run import run_experiment
    from trainer.starting.demo import demo_experiment

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # for models this small, two threads took three times the processor time of one
    folder = output or Path("runs/demo-quick" if quick else "runs/demo")
    experiment = demo_experiment(folder, quick, overrides)
    save_settings(experiment)
    run_experiment(experiment, Console(quiet=not is_main_process() or manner() != "text", markup=False), jobs)


@click.command()
@click.option(
    "--train", metavar="TABLE", help="JSONL, JSON, CSV or Parquet, a pattern, a hub id, a benchmark's folder."
)
@click.option("--test", metavar="TABLE", help="Rows that are never trained on; a benchmark has its own.")
@click.option("--validation", metavar="TABLE", help="A tenth of the training rows unless given.")
@click.option("--teacher", metavar="MODEL", help="The model that is fine-tuned and distilled: a folder or a hub id.")
@click.option(
    "--checkpoints",
    metavar="DIR",
    multiple=True,
    help="A checkpoint of a teacher that is fine-tuned already, a model or adapters; repeated, oldest first.",
)
@click.option("--student", metavar="MODEL", help="The smaller one, with the same tokenizer.")
@click.option("--prompt", metavar="TEXT", help='Of a table of columns, what is asked: "Note: {note}".')
@click.option("--answer", metavar="COLUMN", help="Of a table of columns, the one that answers.")
@click.option(
    "--output",
    default=Path("experiment.toml"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="The config to write; its run will be runs/ and its name.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def init(
    output: Path,
    force: bool,
    prompt: str | None,
    answer: str | None,
    checkpoints: tuple[str, ...],
    **given: str | None,
) -> None:
    """Look at rows and models, and write a first config that runs.

    What is not given is asked for; without a terminal to ask at it is refused.
    """
    from cache_builder.atomic import write_text
    from cache_builder.errors import ConfigError
    from trainer.starting.init import first_config
    from trainer.starting.rows import Places

    if output.exists() and not force:
        raise ConfigError(f"{output} is there already; choose another --output, or --force to replace it")
    train = given["train"] or _ask("train")
    has_own_test = Path(train).is_dir()
    test = given["test"] or (None if has_own_test else _ask("test"))
    teacher, student = (given[role] or _ask(role) for role in ("teacher", "student"))
    places = Places(train, test, given["validation"], prompt, answer)
    found = first_config(places, teacher, student, f"runs/{output.stem}", checkpoints)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, found.text)
    for note in found.notes:
        click.echo(note)
    click.echo(f"config: {output}; next: footsteps plan {output}, then footsteps run {output}")


def _ask(name: str) -> str:
    """Ask for what was not given.

    Raises:
        ConfigError: there is nobody to ask.
    """
    from cache_builder.errors import ConfigError

    if not sys.stdin.isatty():
        raise ConfigError(f"--{name} is not given, and there is no terminal to ask at")
    return str(click.prompt(name, type=str))


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.pass_context
def doctor(context: click.Context, config: Path | None) -> None:
    """Say what is there that a run needs, a line each, and what to do.

    Of CONFIG, its rows, tokenizer and template are tried on the first rows. Exits with 2 where a run would not go.
    """
    from trainer.starting.doctor import examine

    failed = False
    for line in examine(config):
        click.echo(f"{line.state:<4}  {printable(line.text)}")
        failed |= line.state == "fix"
    if failed:
        context.exit(2)
