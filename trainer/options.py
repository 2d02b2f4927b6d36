"""The options that commands of the trainer share."""

from collections.abc import Callable
from typing import Any

import click


def takes_jobs(default: int = 1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--jobs`, how many students are trained at once."""
    return click.option(
        "--jobs",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Students trained at once, each in a process of its own with its share of the threads.",
    )
