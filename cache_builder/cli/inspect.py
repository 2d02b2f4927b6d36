"""`footsteps cache info|verify|audit`: what a cache holds, are its bytes intact, does the model still agree."""

import json
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cache_builder.cli.options import cache_url, read_experiment, takes_cache, takes_config
from cache_builder.errors import CacheDamagedError, CacheIncompleteError

MIN_TABLE_WIDTH = 110


@click.command()
@takes_cache
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def info(context: click.Context, config_or_cache: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print sizes, retained mass and losses of a cache.

    A line for each of its checkpoints.
    """
    from cache_builder.cache.info import describe
    from cache_builder.cache.reader import open_cache

    facts = describe(open_cache(cache_url(context, config_or_cache, overrides)))
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        _print_info(facts)


@click.command()
@takes_cache
@click.pass_context
def verify(context: click.Context, config_or_cache: str, overrides: tuple[str, ...]) -> None:
    """Compare every byte of a cache with what was committed.

    Every file that differs is named.
    """
    from cache_builder.cache.verify import verify_cache
    from cache_builder.storage.open import open_store

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


@click.command()
@takes_config
@click.option("--checkpoint", metavar="NAME", help="Which checkpoint to run again; the last complete one unless given.")
@click.option("--sequences", default=64, show_default=True, type=click.IntRange(min=1), help="How many to sample.")
@click.pass_context
def audit(
    context: click.Context, config: Path, overrides: tuple[str, ...], checkpoint: str | None, sequences: int
) -> None:
    """Run a checkpoint again on a sample, and compare.

    Does the model still say of sampled sequences what the cache says?
    """
    from cache_builder.build.audit import audit_cache
    from cache_builder.build.build import teacher_checkpoints

    experiment = read_experiment(context, config, overrides)
    result = audit_cache(experiment, teacher_checkpoints(experiment), checkpoint, sequences)
    table = Table(
        title=f"{result.checkpoint}: live against cached, {result.positions:,} positions", title_justify="left"
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    for label, value in result.rows():
        table.add_row(label, value)
    Console(markup=False).print(table)
    result.require_agreement()


def _print_info(facts: dict[str, Any]) -> None:
    console = Console(markup=False, highlight=False, width=max(Console().width, MIN_TABLE_WIDTH))
    console.print(
        f"{facts['url']}: format {facts['version']}, {facts['sequences']:,} sequences, "
        f"{facts['positions']:,} positions, {facts['tokens']:,} tokens, vocabulary {facts['vocabulary']:,}",
        soft_wrap=True,
    )
    console.print(
        f"top_k {facts['top_k']}, top_p {facts['top_p']}, tail_samples {facts['tail_samples']}, "
        f"tail_blocks {facts['tail_blocks']}; "
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
