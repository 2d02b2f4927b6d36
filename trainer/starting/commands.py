"""`footsteps demo`: what it reads, in which order it calls, and what it prints."""

import os
from pathlib import Path

import click
from rich.console import Console

from cache_builder.cli.options import set_option
from trainer.processes import is_main_process


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="The run's folder; runs/demo unless given.")
@click.option("--quick", is_flag=True, help="Every stage in a minute, in runs/demo-quick; its figures mean nothing.")
@set_option
def demo(output: Path | None, quick: bool, overrides: tuple[str, ...]) -> None:
    """Run the whole pipeline on made-up data, on a CPU, in minutes: a table and a report."""
    import torch

    from cache_builder.config import save_experiment
    from trainer.run import run_experiment
    from trainer.starting.demo import demo_experiment

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # for models this small, two threads took three times the processor time of one
    folder = output or Path("runs/demo-quick" if quick else "runs/demo")
    experiment = demo_experiment(folder, quick, overrides)
    save_experiment(experiment, folder / "config.toml")
    run_experiment(experiment, Console(quiet=not is_main_process(), markup=False))
