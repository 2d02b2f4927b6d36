"""A checkpoint of a cache as one plain Parquet file, a row per sequence, for any program that reads tables.

    sample_id        string
    input_ids        list<uint32>           every token
    completion       list<bool>             which of them are learned; M of them have a token before: the positions
    loss             float64                −Σ gold, nats
    ids, logp        list<fixed_size_list>  [M, K]
    samples          list<fixed_size_list>  [M, S]; no such column where S is 0
    log_tail, gold, entropy                 [M]
    log_blocks, log_collision               [M, G], [M, 1]; no such columns in a cache without blocks of the tail

The file's metadata has the manifest, the checkpoint's identity and its held-out loss, as JSON under "footsteps".
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from cache_builder.atomic import new_file
from cache_builder.cache.reader import Cache
from cache_builder.errors import CacheIncompleteError, CacheMismatchError, UserError
from cache_builder.positions import groups_of_rows
from cache_builder.storage.local import write_error

METADATA = "footsteps"
GROUP_POSITIONS = 32_768
"""Positions of a row group, about: what is held in memory, and what a reader takes at once."""


def export_cache(cache: Cache, path: Path, name: str | None = None) -> int:
    """Write a checkpoint (the last complete one unless named) to a Parquet file; return how many sequences it has.

    The file is written under another name and renamed when it is whole.

    Raises:
        CacheIncompleteError: the checkpoint is not there.
        CacheMismatchError: the file is there already.
        CacheWriteError: it cannot be written.
    """
    if name is None:
        if not cache.checkpoints:
            raise CacheIncompleteError(f"cache {cache.url} has no complete checkpoint to export")
        name = cache.checkpoints[-1]
    cache.checkpoint(name)
    if path.exists():
        raise CacheMismatchError(f"{path} is there already; remove it, or choose another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part:
            _write(cache, name, part)
    except UserError:
        raise
    except OSError as error:
        raise write_error(str(path), cache.checkpoint_bytes(name), error) from error
    return len(cache.corpus)


def schema_of(cache: Cache, name: str) -> pa.Schema:
    """Return the columns of an export, with its metadata."""
    options, group = cache.manifest.targets, cache.checkpoint(name)
    columns: dict[str, Any] = {
        "sample_id": pa.string(),
        "input_ids": pa.list_(pa.uint32()),
        "completion": pa.list_(pa.bool_()),
        "loss": pa.float64(),
        "ids": pa.list_(pa.list_(pa.uint32(), options.top_k)),
        "logp": pa.list_(pa.list_(pa.float32(), options.top_k)),
    }
    if options.tail_samples:
        columns["samples"] = pa.list_(pa.list_(pa.uint32(), options.tail_samples))
    columns |= {scalar: pa.list_(pa.float32()) for scalar in ("log_tail", "gold", "entropy")}
    if options.edges:
        columns["log_blocks"] = pa.list_(pa.list_(pa.float32(), len(options.edges) - 1))
    if options.edges and options.tail_samples:
        columns["log_collision"] = pa.list_(pa.list_(pa.float32(), 1))
    about = {
        "manifest": cache.manifest.model_dump(mode="json"),
        "identity": group.identity.model_dump(mode="json"),
        "held_out_loss": group.held_out_loss,
    }
    return pa.schema(columns, metadata={METADATA: json.dumps(about)})


def _write(cache: Cache, name: str, part: Path) -> None:
    schema, losses = schema_of(cache, name), cache.losses(name)
    groups = _groups(cache.corpus.position_offsets)
    console = Console(stderr=True)
    with pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for rows in track(groups, name, console=console, transient=True, disable=not console.is_terminal):
            writer.write_table(_table(cache, name, rows, losses, schema), row_group_size=len(rows))


def _groups(position_offsets: np.ndarray) -> list[range]:
    """Cut the rows into runs of about GROUP_POSITIONS positions, at least one row each."""
    group_of_row = groups_of_rows(position_offsets, GROUP_POSITIONS)
    starts = np.flatnonzero(np.diff(group_of_row, prepend=-1))
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(group_of_row)], strict=True)]


def _table(cache: Cache, name: str, rows: range, losses: np.ndarray, schema: pa.Schema) -> pa.Table:
    targets = cache.read(name, rows)
    sequences = cache.corpus.sequences(rows)
    tokens, positions = cache.corpus.token_offsets, cache.corpus.position_offsets
    by_token = _offsets(tokens, rows)
    by_position = _offsets(positions, rows)
    columns: dict[str, pa.Array] = {
        "sample_id": pa.array([cache.corpus.sample_ids[row] for row in rows]),
        "input_ids": _lists(by_token, np.concatenate([ids for ids, _ in sequences])),
        "completion": _lists(by_token, np.concatenate([completion for _, completion in sequences])),
        "loss": pa.array(losses[rows.start : rows.stop]),
        "ids": _lists(by_position, targets.ids.astype(np.uint32)),
        "logp": _lists(by_position, targets.logp),
        "samples": _lists(by_position, targets.samples.astype(np.uint32)),
        "log_tail": _lists(by_position, targets.log_tail),
        "gold": _lists(by_position, targets.gold),
        "entropy": _lists(by_position, targets.entropy),
        "log_blocks": _lists(by_position, targets.log_blocks),
        "log_collision": _lists(by_position, targets.log_collision),
    }
    return pa.table([columns[column] for column in schema.names], schema=schema)


def _offsets(offsets: np.ndarray, rows: range) -> pa.Array:
    return pa.array((offsets[rows.start : rows.stop + 1] - offsets[rows.start]).astype(np.int32))


def _lists(offsets: pa.Array, values: np.ndarray) -> pa.Array:
    """Cut values [M] or [M, width] into one list per row."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 2:
        flat = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.shape[1] else pa.nulls(len(values))
    return pa.ListArray.from_arrays(offsets, flat)
