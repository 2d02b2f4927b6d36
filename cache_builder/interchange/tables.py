"""The files of a source, read row by row in bounded memory: Parquet, or JSON lines.

a file, or a folder's data_0.parquet, data_1.parquet, … data_10.parquet    numbers in names count as numbers
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache_builder.data.rows.lines import decode
from cache_builder.errors import DataError, MissingError, first_line

PARQUET, JSON_LINES = (".parquet",), (".jsonl", ".json")
BATCH_ROWS = 16
"""Rows of a Parquet file that are decoded together: at 8,192 tokens of 300 bytes, 40 MB."""


def source_files(source: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return a source's files in order.

    Raises:
        MissingError: there is no such file or folder, or the folder has no file of these kinds.
        DataError: the file, or the folder's files, are not all of one of these kinds.
    """
    kinds = " or ".join(suffixes)
    if source.is_file():
        found = [source]
    elif source.is_dir():
        found = sorted((path for path in source.iterdir() if path.suffix in PARQUET + JSON_LINES), key=_by_number)
        if not found:
            raise MissingError(f"{source}: expected {kinds} files in this folder, got none")
    else:
        raise MissingError(f"{source}: no such file or folder")
    wrong = [path for path in found if path.suffix not in suffixes]
    if wrong or len({path.suffix for path in found}) > 1:
        names = ", ".join(path.name for path in (wrong or found)[:3])
        raise DataError(f"{source}: expected {kinds} files, all of one kind, got {names}")
    return found


def digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' bytes, one after another."""
    sha = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                sha.update(block)
    return sha.hexdigest()


def count_rows(files: list[Path]) -> int | None:
    """Return how many rows there are; None where only reading would tell."""
    if files[0].suffix not in PARQUET:
        return None
    return sum(_open(path).metadata.num_rows for path in files)


def read_columns(files: list[Path], needed: tuple[str, ...], wanted: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield (what an error calls the row, {column: pyarrow list scalar}) of Parquet files.

    Raises:
        DataError: a file is not Parquet, or lacks a column that is needed.
    """
    for path in files:
        table = _open(path)
        missing = [name for name in needed if name not in table.schema_arrow.names]
        if missing:
            raise DataError(
                f"{path}: expected the columns {', '.join(needed)}, got {', '.join(table.schema_arrow.names)}"
            )
        columns = [name for name in (*needed, *wanted) if name in table.schema_arrow.names]
        row = 0
        for batch in _batches(table, path, columns):
            for at in range(batch.num_rows):
                yield f"{path}, row {row}", {name: batch.column(name)[at] for name in columns}
                row += 1


def read_objects(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (what an error calls the row, the row as plain values) of Parquet files or of JSON lines.

    Raises:
        DataError: a file is not what its name says; the message names the row.
    """
    for path in files:
        if path.suffix in PARQUET:
            rows: Iterator[dict[str, Any]] = (
                row for batch in _batches(_open(path), path) for row in _plain(batch, path)
            )
            for number, row in enumerate(rows):
                yield f"{path}, row {number}", row
        else:
            with path.open("rb") as file:
                for number, line in enumerate(file):
                    if line.strip():
                        where = f"{path}, row {number}"
                        yield where, _object(decode(line, where), where)


def matrix(value: Any, field: str, where: str, width: int, dtype: str) -> np.ndarray:
    """Return a pyarrow list of lists that all have `width` numbers as an array [rows, width].

    Raises:
        DataError: it is null, a list within it has another length, or a number does not fit; the message names which.
    """
    rows = value.values if _is_list(value.type) else None
    if rows is None or not _is_list(rows.type):
        raise DataError(f"{where}: `{field}`: expected a list of lists, got {value.type if value.is_valid else None}")
    widths = pc.list_value_length(rows).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(widths != width)
    if len(wrong):
        raise DataError(
            f"{where}: `{field}`, place {wrong[0]}: expected {width} numbers, got {widths[wrong[0]]:.0f}; was it "
            "written with another compression config?"
        )
    return _numbers(rows.flatten(), field, where, dtype).reshape(len(rows), width)


def vector(value: Any, field: str, where: str) -> np.ndarray:
    """Return a pyarrow list of whole numbers, i64.

    Raises:
        DataError: it is null, holds something else, or a number does not fit.
    """
    if not _is_list(value.type) or value.values is None:
        got = value.type if value.is_valid else "none"
        raise DataError(f"{where}: `{field}`: expected a list of numbers, got {got}")
    return _numbers(value.values, field, where, "int64")


def _numbers(values: pa.Array, field: str, where: str, dtype: str) -> np.ndarray:
    if values.null_count:
        raise DataError(f"{where}: `{field}`: expected numbers, got null among them")
    try:
        return values.cast(pa.from_numpy_dtype(dtype)).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{where}: `{field}`: expected numbers of {dtype}, got {values.type}: {error}") from None


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected one JSON object per line, got {line[:40]!r}: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected one JSON object per line, got {type(row).__name__}")
    return row


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: expected a Parquet file: {first_line(error)}") from None


def _batches(table: pq.ParquetFile, path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    try:
        yield from table.iter_batches(batch_size=BATCH_ROWS, columns=columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged, or holds what cannot be read: {first_line(error)}") from None


def _plain(batch: pa.RecordBatch, path: Path) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:  # text that is none, dates out of range
        raise DataError(f"{path} holds a value that cannot be read: {first_line(error)}") from None


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
