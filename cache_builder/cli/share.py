"""`footsteps cache push|pull`: what they read, and how they say what they do."""

from pathlib import Path
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cache_builder.cli.options import cache_url, takes_cache
from cache_builder.errors import ConfigError

checkpoint_option = click.option(
    "--checkpoint", "checkpoints", metavar="NAME", multiple=True, help="Only this checkpoint; may be repeated."
)
jobs_option = click.option(
    "--jobs", default=8, show_default=True, type=click.IntRange(1, 64), help="Files on their way at once."
)


@click.command()
@takes_cache
@click.argument("destination")
@checkpoint_option
@jobs_option
@click.pass_context
def push(
    context: click.Context,
    config_or_cache: str,
    destination: str,
    overrides: tuple[str, ...],
    checkpoints: tuple[str, ...],
    jobs: int,
) -> None:
    """Copy a cache, with a card, to the Hub, a URL or a folder.

    DESTINATION is hf://datasets/OWNER/NAME, an fsspec URL or a folder. What was stopped is continued.
    """
    copy_and_report(cache_url(context, config_or_cache, overrides), destination, checkpoints, jobs, card=True)


@click.command()
@click.argument("source")
@click.argument("folder")
@checkpoint_option
@jobs_option
def pull(source: str, folder: str, checkpoints: tuple[str, ...], jobs: int) -> None:
    """Copy a cache to this machine, checking every byte.

    What was stopped is continued.
    """
    if "://" in folder:
        raise ConfigError(f"{folder!r} is no folder of this machine; `footsteps cache push` copies to a URL")
    copy_and_report(source, folder, checkpoints, jobs, card=False)


def copy_and_report(source: str, destination: str, checkpoints: tuple[str, ...], jobs: int, *, card: bool) -> None:
    """Transfer a cache, show how far it is, and say what was done."""
    from cache_builder.sharing.copy_plan import plan_copy
    from cache_builder.sharing.transfer import copy_cache
    from cache_builder.storage.open import open_store

    place, origin = open_store(destination), open_store(source)
    if Path(origin.where("")).resolve() in Path(place.where("")).resolve().parents:
        raise ConfigError(f"{destination} lies inside the cache {source}, where a copy would be taken for a part of it")
    plan = plan_copy(origin, checkpoints)
    with Bytes(Console(stderr=True), plan.bytes) as progress:
        stats = copy_cache(plan, place, jobs=jobs, card=card, done=progress.advance)
    if stats.card_kept:
        click.echo(
            f"note: {place.where('README.md')} was not written by this command or was edited; it is kept", err=True
        )
    click.echo(
        f"{place.where('')}: {', '.join(plan.chosen)}; {stats.sent_files} files, {stats.sent_bytes:,} bytes copied, "
        f"{stats.present_files} were there"
    )


class Bytes:
    """A bar in bytes on a terminal, nothing elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self.bar = Progress(
            TextColumn("bytes"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("bytes", total=total)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def advance(self, count: int) -> None:
        """Say that so many more bytes are there."""
        self.bar.advance(self.task, count)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
