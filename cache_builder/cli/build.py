"""`footsteps cache build`: what it reads, in which order it calls, and what it prints."""

from pathlib import Path
from typing import Any

import click

from cache_builder.cli.options import read_experiment, takes_config, takes_manner
from cache_builder.errors import ConfigError
from cache_builder.narration import say


@click.command()
@takes_config
@takes_manner
@click.option("--part", "part_text", metavar="I/N", help="Do share I (from 0) of N; torchrun's RANK unless given.")
@click.option("--checkpoint", metavar="NAME", help="Build only this checkpoint of teacher.checkpoints.")
@click.option("--repair", is_flag=True, help="First verify every byte; build again what is damaged.")
@click.option(
    "--scheduler", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Run here or on Ray."
)
@click.option("--ray-address", metavar="HOST:PORT", help="Ray's; RAY_ADDRESS or one of its own unless given.")
@click.option("--actors", type=click.IntRange(min=1), help="Ray: processes; as many as there is room for unless given.")
@click.option("--gpus-per-actor", type=click.FloatRange(min=0), help="Ray: 1 where there are GPUs unless given.")
@click.option("--cpus-per-actor", type=click.FloatRange(min=0), help="Ray: 1 unless given; also its threads.")
@click.pass_context
def build(
    context: click.Context,
    config: Path,
    overrides: tuple[str, ...],
    part_text: str | None,
    checkpoint: str | None,
    repair: bool,
    scheduler: str,
    **ray_options: Any,
) -> None:
    """Run every checkpoint of the teacher over the corpus.

    A build that was stopped is continued.
    """
    from cache_builder.build.build import build_cache, in_this_process, teacher_checkpoints
    from cache_builder.build.ray_scheduler import RayOptions, ray_scheduler
    from cache_builder.build.work_units import parse_part
    from cache_builder.data.prepare import Prepared

    experiment = read_experiment(context, config, overrides)
    given = {name: value for name, value in ray_options.items() if value is not None}
    if scheduler == "ray" and part_text is not None:
        raise ConfigError("--part is for builders that divide the work themselves; with --scheduler ray, give --actors")
    if scheduler == "ray" and experiment.teacher.tensor_parallel > 1:
        raise ConfigError(
            "teacher.tensor_parallel is for torchrun; an actor has its GPUs to itself, so with --scheduler ray give "
            'teacher.device_map = "auto" and --gpus-per-actor'
        )
    if scheduler == "local" and given:
        raise ConfigError(f"--{min(given).replace('_', '-')} is for --scheduler ray")
    part = parse_part(part_text, experiment.teacher.tensor_parallel) if scheduler == "local" else (0, 1)
    opened = ray_scheduler(RayOptions(**given)) if scheduler == "ray" else in_this_process
    checkpoints = teacher_checkpoints(experiment)
    prepared = Prepared(experiment)
    complete = build_cache(
        experiment,
        prepared.train,
        prepared.tokenizer,
        checkpoints,
        prepared.validation,
        part=part,
        only=checkpoint,
        repair=repair,
        scheduler=opened,
    )
    state = "complete" if complete else "this part is done; other parts are not"
    say("cache", f"{experiment.cache_url}: {state}", path=experiment.cache_url, complete=complete)
