"""The arguments that commands share, and how they become an experiment or a cache's place.

    CONFIG [--set …]             takes_config   → config, overrides
    CACHE_OR_CONFIG [--set …]    takes_cache    → config_or_cache, overrides
    [--quiet | --json]           takes_manner   → nothing: how the command speaks is in the environment

A command that runs under `footsteps` reads a config with the whole experiment's schema, which `context.obj` returns;
by itself, with what the cache needs of it.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from cache_builder.config import CacheExperiment, load_experiment
from cache_builder.narration import VARIABLE, in_environment

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."
)


def takes_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the CONFIG argument and the `--set` option."""
    return click.argument("config", type=click.Path(path_type=Path))(set_option(command))


def takes_manner(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--quiet` and `--json`, which say how a long command speaks while it works."""

    @functools.wraps(command)
    def speaking(*arguments: Any, quiet: bool, as_json: bool, **options: Any) -> Any:
        if quiet and as_json:
            raise click.UsageError("--quiet and --json exclude each other; give one")
        said = in_environment(VARIABLE, "quiet" if quiet else "json") if quiet or as_json else nullcontext()
        with said:
            return command(*arguments, **options)

    as_json = click.option("--json", "as_json", is_flag=True, help="Say JSON lines, for machines.")
    return click.option("--quiet", is_flag=True, help="Say nothing but warnings.")(as_json(speaking))


def takes_cache(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument that is a cache or the config it was built from, and the `--set` option for the latter."""
    return click.argument("config_or_cache", type=click.Path(), metavar="CACHE_OR_CONFIG")(set_option(command))


def read_experiment(context: click.Context, config: str | Path, overrides: tuple[str, ...]) -> CacheExperiment:
    """Read CONFIG with the schema of the command line that this command belongs to."""
    schema = CacheExperiment if context.obj is None else context.obj()
    return load_experiment(schema, config, overrides)


def cache_url(context: click.Context, config_or_cache: str, overrides: tuple[str, ...]) -> str:
    """Return where a cache is: a TOML file stands for its experiment's, anything else is its own folder or URL."""
    if Path(config_or_cache).is_file() or config_or_cache.endswith(".toml"):
        return read_experiment(context, config_or_cache, overrides).cache_url
    return config_or_cache
