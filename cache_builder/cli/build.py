"""`footsteps cache build|info|verify|audit|…`: what they read, in which order they call, and how they print it."""

import json
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cache_builder.cli.interchange import export_command, import_command
from cache_builder.cli.share import pull, push
from cache_builder.config import CacheExperiment, load_experiment
from cache_builder.errors import CacheDamagedError, CacheIncompleteError, ConfigError

MIN_TABLE_WIDTH = 110

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a setting of CONFIG; repeatable."
)


@click.group()
def cache() -> None:
    """Build, inspect and check the cache of what the teacher's checkpoints say."""


cache.add_command(import_command)
cache.add_command(export_command)
cache.add_command(push)
cache.add_command(pull)


@cache.command()
@click.argument("config", type=click.Path())
@set_option
@click.option("--part", "part_text", metavar="I/N", help="Do share I (from 0) of N; torchrun's RANK unless given.")
@click.option("--checkpoint", metavar="NAME", help="Build only this checkpoint of teacher.checkpoints.")
@click.option("--repair", is_flag=True, help="First verify every byte; build again what is damaged.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Run here or on Ray."
)
@click.option("--ray-address", metavar="HOST:PORT", help="Ray's; RAY_ADDRESS or one of its own unless given.")
@click.option("--actors", type=click.IntRange(min=1), help="Ray: processes; as many as there is room for unless given.")
@click.option("--gpus-per-actor", type=click.FloatRange(min=0), help="Ray: 1 where there are GPUs unless given.")
@click.option("--cpus-per-actor", type=click.FloatRange(min=0), help="Ray: 1 unless given; also its threads.")
@click.pass_context
def build(
    context: click.Context,
    config: str,
    overrides: tuple[str, ...],
    part_text: str | None,
    checkpoint: str | None,
    repair: bool,
    engine: str,
    **ray_options: Any,
) -> None:
    """Run every checkpoint of the teacher over the corpus; continue where a build was stopped."""
    from cache_builder.build.build import build_cache, in_this_process, teacher_checkpoints
    from cache_builder.build.ray_scheduler import RayOptions, ray_engine
    from cache_builder.build.work_units import parse_part
    from cache_builder.data.prepare import Prepared

    experiment = _experiment(context, config, overrides)
    given = {name: value for name, value in ray_options.items() if value is not None}
    if engine == "ray" and part_text is not None:
        raise ConfigError("--part is for builders that divide the work themselves; with --engine ray, give --actors")
    if engine == "ray" and experiment.teacher.tensor_parallel > 1:
        raise ConfigError(
            "teacher.tensor_parallel is for torchrun; an actor has its GPUs to itself, so with --engine ray give "
            'teacher.device_map = "auto" and --gpus-per-actor'
        )
    if engine == "local" and given:
        raise ConfigError(f"--{min(given).replace('_', '-')} is for --engine ray")
    part = parse_part(part_text, experiment.teacher.tensor_parallel) if engine == "local" else (0, 1)
    opened = ray_engine(RayOptions(**given)) if engine == "ray" else in_this_process
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
        engine=opened,
    )
    state = "complete" if complete else "this part is done; other parts are not"
    click.echo(f"{experiment.cache_url}: {state}")


@cache.command()
@click.argument("config_or_cache", type=click.Path())
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def info(context: click.Context, config_or_cache: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print sizes, retained mass and losses of a cache's checkpoints."""
    from cache_builder.cache.info import describe
    from cache_builder.cache.reader import open_cache

    facts = describe(open_cache(cache_url(context, config_or_cache, overrides)))
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        _print_info(facts)


@cache.command()
@click.argument("config_or_cache", type=click.Path())
@set_option
@click.pass_context
def verify(context: click.Context, config_or_cache: str, overrides: tuple[str, ...]) -> None:
    """Compare every byte of a cache with what was committed; name every file that differs."""
    from cache_builder.cache.verify import verify_cache
    from cache_builder.storage.base import open_store

    url = cache_url(context, config_or_cache, overrides)
    verdict = verify_cache(open_store(url))
    for key in verdict.foreign:
        click.echo(f"note: {key} is not part of the cache", err=True)
    if verdict.damaged:
        raise CacheDamagedError(
            f"{len(verdict.damaged)} of {verdict.files} files of cache {url} are damaged:\n"
            + "\n".join(f"  {key}: {reason}" for key, reason in verdict.damaged.items())
            + "\nrestore them from a copy, or `footsteps cache build CONFIG --repair` to build again what is damaged"
        )
    if verdict.incomplete:
        raise CacheIncompleteError(
            f"cache {url}: what is committed is intact, but unfinished are: {', '.join(verdict.incomplete)}; "
            "run `footsteps cache build CONFIG` to its end"
        )
    click.echo(f"{url}: {verdict.files} files, {verdict.bytes:,} bytes, all as committed")


@cache.command()
@click.argument("config", type=click.Path())
@set_option
@click.option("--checkpoint", metavar="NAME", help="Which checkpoint to run again; the last complete one unless given.")
@click.option("--sequences", default=64, show_default=True, type=click.IntRange(min=1), help="How many to sample.")
@click.pass_context
def audit(
    context: click.Context, config: str, overrides: tuple[str, ...], checkpoint: str | None, sequences: int
) -> None:
    """Run a checkpoint again on sampled sequences and compare it with what the cache says."""
    from cache_builder.build.audit import audit_cache
    from cache_builder.build.build import teacher_checkpoints

    experiment = _experiment(context, config, overrides)
    result = audit_cache(experiment, teacher_checkpoints(experiment), checkpoint, sequences)
    table = Table(
        title=f"{result.checkpoint}: live against cached, {result.positions:,} positions", title_justify="left"
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    for label, value in result.rows():
        table.add_row(label, value)
    Console().print(table)
    result.require_agreement()


def _experiment(context: click.Context, config: str, overrides: tuple[str, ...]) -> CacheExperiment:
    schema = context.obj if isinstance(context.obj, type) else CacheExperiment
    return load_experiment(schema, config, overrides)


def cache_url(context: click.Context, config_or_cache: str, overrides: tuple[str, ...]) -> str:
    """Return where a cache is: a TOML file stands for its experiment's, anything else is its own folder or URL."""
    if Path(config_or_cache).is_file() or config_or_cache.endswith(".toml"):
        return _experiment(context, config_or_cache, overrides).cache_url
    return config_or_cache


def _print_info(facts: dict[str, Any]) -> None:
    console = Console(highlight=False, width=max(Console().width, MIN_TABLE_WIDTH))
    console.print(
        f"{facts['url']}: format {facts['version']}, {facts['sequences']:,} sequences, "
        f"{facts['positions']:,} positions, {facts['tokens']:,} tokens, vocabulary {facts['vocabulary']:,}",
        soft_wrap=True,
    )
    console.print(
        f"top_k {facts['top_k']}, top_p {facts['top_p']}, tail_samples {facts['tail_samples']}; "
        f"corpus {facts['corpus_bytes']:,} bytes, probe {facts['probe_bytes']:,} bytes; unfinished: "
        f"{', '.join(facts['unfinished']) or 'none'}",
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("checkpoint", "bytes", "per position", "retained", "p50", "p90", "p99", "loss", "held-out"):
        table.add_column(title, justify="left" if title == "checkpoint" else "right", no_wrap=True)
    for row in facts["checkpoints"]:
        retained = row["retained_mass"] or {}
        figures = [*(retained.get(key) for key in ("mean", "p50", "p90", "p99")), row["loss"], row["held_out_loss"]]
        shown = ["–" if figure is None else f"{figure:.4f}" for figure in figures]
        table.add_row(row["name"], f"{row['bytes']:,}", f"{row['bytes_per_position']:.1f}", *shown)
    console.print(table)
    if facts["imported"]:
        _print_imported(console, facts)
    console.print(
        "retained: probability that the stored ids hold, mean and what 50, 90, 99 % of positions reach at least;"
    )
    console.print("losses in nats per position")


def _print_imported(console: Console, facts: dict[str, Any]) -> None:
    imported, unknown = facts["imported"], sum(row["sequences_without_loss"] for row in facts["checkpoints"])
    tail = {"complement": "one minus the stored tokens' mass", "none": "not known"}[imported["tail"]]
    console.print(
        f"imported from {imported['format']} rows: tail {tail}; no entropy, tail samples, held-out loss, probe or "
        f"weights known; the teacher's loss is missing for {unknown:,} of {facts['sequences']:,} sequences; "
        f"{imported['left_out']:,} tokens were left out because they have no target",
        soft_wrap=True,
    )
