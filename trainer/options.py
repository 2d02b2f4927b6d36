"""The options that commands of the trainer share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cache_builder.config import CacheExperiment

_SAVED = f"{__name__}.saved"


def takes_jobs(default: int = 1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--jobs`, how many students are trained at once."""
    return click.option(
        "--jobs",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Students trained at once, each in a process of its own with its share of the threads.",
    )


def save_settings(experiment: "CacheExperiment") -> None:
    """Write a command's settings into its run folder, from which they can be run again."""
    from cache_builder.config import save_experiment

    path = experiment.output_dir / "config.toml"
    before = path.read_bytes() if path.is_file() else None
    save_experiment(experiment, path)
    click.get_current_context().meta[_SAVED] = path, before


def put_settings_back(context: click.Context) -> None:
    """Give a run folder back the settings that it had before a command whose settings it refuses."""
    from cache_builder.atomic import write_bytes

    path, before = context.meta.get(_SAVED, (None, None))
    if before is not None:
        write_bytes(path, before)
