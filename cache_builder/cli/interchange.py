"""`footsteps cache import|export`: what they read, in which order they call, and what they print."""

from pathlib import Path
from typing import Any

import click


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("cache")
@click.option(
    "--format",
    "source_format",
    required=True,
    type=click.Choice(["distillkit", "axolotl"]),
    help="Whose rows they are.",
)
@click.option(
    "--tokenizer", "tokenizer_path", required=True, metavar="PATH", help="Folder or hub id of their tokenizer."
)
@click.option("--name", default="imported", show_default=True, help="The checkpoint's name in the cache.")
@click.option(
    "--tail",
    type=click.Choice(["complement", "none"]),
    help="complement: the source's probabilities are over the whole vocabulary, so what they lack to one is the tail. "
    "none: normalise them over the stored tokens. Unless given, what rows of this kind hold.",
)
@click.option(
    "--temperature",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Of the source; undone.",
)
@click.option("--compression-config", type=click.Path(path_type=Path), help="DistillKit: unless beside the rows.")
@click.option(
    "--alignment",
    default="next",
    show_default=True,
    type=click.Choice(["next", "same"]),
    help="axolotl, prepared rows: row j of the targets is that of token j + 1, or of token j (older axolotl).",
)
@click.option("--logprobs-field", default="logprobs", show_default=True, help="axolotl, raw rows.")
@click.option("--messages-field", default="messages", show_default=True, help="axolotl, raw rows.")
@click.option("--chat-template", help='axolotl, raw rows: a Jinja template, or "plain"; the tokenizer\'s unless given.')
def import_command(
    source: Path,
    cache: str,
    source_format: str,
    tokenizer_path: str,
    name: str,
    tail: Any,
    temperature: float,
    compression_config: Path | None,
    alignment: Any,
    logprobs_field: str,
    messages_field: str,
    chat_template: str | None,
) -> None:
    """Read another program's top-k targets as a cache.

    SOURCE becomes a cache of one checkpoint; an import that was stopped is continued.
    """
    from cache_builder.data.tokenizer import load_tokenizer
    from cache_builder.interchange.axolotl import AxolotlSource
    from cache_builder.interchange.check import Source
    from cache_builder.interchange.distillkit import DistillKitSource
    from cache_builder.interchange.importing import import_cache

    tokenizer = load_tokenizer(tokenizer_path)
    rows: Source
    if source_format == "distillkit":
        rows = DistillKitSource(source, tokenizer, compression_config)
    else:
        rows = AxolotlSource(
            source,
            tokenizer,
            alignment=alignment,
            logprobs_field=logprobs_field,
            messages_field=messages_field,
            chat_template=chat_template,
        )
    seen = import_cache(rows, cache, tokenizer, name=name, tail=tail, temperature=temperature)
    click.echo(
        f"{cache}: complete, {seen.rows - seen.rows_without_target:,} sequences, top {seen.top_k}, tail: {seen.tail}; "
        f"{seen.rows_without_target:,} rows and {seen.left_out:,} tokens to be learned have no target and were left out"
    )


@click.command("export")
@click.argument("cache")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--checkpoint", metavar="NAME", help="Which one; the last complete one unless given.")
def export_command(cache: str, file: Path, checkpoint: str | None) -> None:
    """Write a checkpoint of CACHE to one plain Parquet FILE.

    A row for each sequence.
    """
    from cache_builder.cache.reader import open_cache
    from cache_builder.interchange.exporting import export_cache

    count = export_cache(open_cache(cache), file, checkpoint)
    click.echo(f"{file}: {count:,} sequences")
