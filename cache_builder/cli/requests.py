"""`footsteps cache requests`: what another engine is to run for a cache."""

from pathlib import Path

import click

from cache_builder.cli.options import read_experiment, takes_config


@click.command()
@takes_config
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="teacher.hidden_states, if given."
)
@click.pass_context
def requests(context: click.Context, config: Path, overrides: tuple[str, ...], output: Path | None) -> None:
    """Write every sequence's token ids, for another engine.

    For one that gives hidden states.
    """
    from cache_builder.build.build import teacher_checkpoints
    from cache_builder.build.requests import write_requests
    from cache_builder.config import expand
    from cache_builder.data.prepare import Prepared
    from cache_builder.errors import ConfigError

    experiment = read_experiment(context, config, overrides)
    if output is None and experiment.teacher.hidden_states is None:
        raise ConfigError("give --output DIR, or teacher.hidden_states in the config")
    folder = output or Path(expand(str(experiment.teacher.hidden_states)))
    checkpoints = teacher_checkpoints(experiment)
    prepared = Prepared(experiment)
    written = write_requests(folder, prepared.train, prepared.validation, [name for name, _ in checkpoints])
    click.echo(
        f"{folder}: {written.sequences:,} sequences, {written.tokens:,} tokens in {written.files} files, to be run by "
        f"{len(checkpoints)} checkpoints: {', '.join(name for name, _ in checkpoints)}"
    )
