"""Tables by name: JSON lines, a JSON array, CSV or Parquet files, a pattern of them, or a hub data set.

    notes.jsonl   notes.json   notes.csv   notes-*.parquet   owner/name[@revision][:split]
                 ╰──────── rows by index, each with what an error calls it ────────╯

What is in a file decides, never another program's copy of it: files are read in place, each time.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cache_builder.data.rows.lines import CsvRows, JsonLines, Row, decode
from cache_builder.errors import DataError, MissingError, first_line

BATCH_ROWS = 256
"""Rows of a Parquet file that are decoded together."""


class Table(Protocol):
    """Rows by index: (what an error calls it, the row)."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[str, Row]: ...
    def __iter__(self) -> Iterator[tuple[str, Row]]: ...


def open_table(location: str, setting: str, split: str) -> Table:
    """Open a file, a pattern of files, or a hub data set; `setting` names it in errors.

    Raises:
        MissingError: there is no such file.
        DataError: it cannot be read, or has no row.
    """
    suffix = Path(location).suffix
    if suffix in READERS:
        paths = matches(location)
        if not paths:
            raise MissingError(f"{setting} {location}: no such file")
        try:
            tables = [READERS[suffix](path) for path in paths]
        except OSError as error:
            raise DataError(f"{setting} {location} could not be read: {error}") from None
        if not any(len(table) for table in tables):
            raise DataError(f"{setting} {location} is empty; at least one example is needed")
        return tables[0] if len(tables) == 1 else Joined(tables)
    if Path(location).is_absolute() or location.startswith(".") or location.count("/") > 1:
        raise MissingError(f"{setting} {location}: expected a .jsonl, .json, .csv or .parquet file, or a hub id")
    return HubRows(location, split)


def matches(location: str) -> list[Path]:
    """Return the regular files that a path or a pattern names, in order."""
    path = Path(location)
    return [path] if path.is_file() else sorted(found for found in path.parent.glob(path.name) if found.is_file())


class Joined:
    """Tables one after another."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.starts = np.cumsum([0, *(len(table) for table in tables)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for table in self.tables:
            yield from table

    def __getitem__(self, index: int) -> tuple[str, Row]:
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.tables[which][index - int(self.starts[which])]


class JsonArray:
    """A file that is one JSON array of objects; it is held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = decode(path.read_bytes(), str(path)).removeprefix("\ufeff")
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: expected a JSON array of objects: {error or 'nested too deeply'}") from None
        wrong = [index for index, row in enumerate(rows) if not isinstance(row, dict)]
        if wrong:
            kind = type(rows[wrong[0]]).__name__
            raise DataError(f"{path}, row {wrong[0]}: expected a JSON object, got {kind}")
        self.rows: list[Row] = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> tuple[str, Row]:
        return f"{self.path}, row {index}", self.rows[index]


class ParquetRows:
    """A Parquet file, decoded some rows at a time; reading forwards decodes each row once.

    Arrow gives every row all keys of a struct, None where it has none; so None is left out of them.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self.file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: expected a Parquet file: {first_line(error)}") from None
        self.path = path
        self._unreadable = (pa.ArrowException, OSError, ValueError, OverflowError)
        self._next = 0
        self._batches: Iterator[Any] = iter(())
        self._start, self._rows = 0, list[Row]()

    def __len__(self) -> int:
        return int(self.file.metadata.num_rows)

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> tuple[str, Row]:
        if index < self._start or not self._next:
            self._batches = self.file.iter_batches(batch_size=BATCH_ROWS)
            self._start, self._next, self._rows = 0, 0, []
        while index >= self._next:
            try:
                batch = next(self._batches)
                rows = batch.to_pylist() if index < self._next + batch.num_rows else []
            except (*self._unreadable, StopIteration) as error:
                self._next = 0
                raise DataError(f"{self.path}, row {index}: the file is damaged: {first_line(error)}") from None
            self._start, self._next = self._next, self._next + batch.num_rows
            self._rows = rows
        return f"{self.path}, row {index}", without_none(self._rows[index - self._start])


class HubRows:
    """A data set of the hub, as the `datasets` library keeps it on this machine."""

    def __init__(self, location: str, split: str) -> None:
        import datasets

        name, _, hub_split = location.partition(":")
        name, _, revision = name.partition("@")
        self.name = f"{location}, split {hub_split or split}"
        try:
            self.dataset: Any = datasets.load_dataset(name, revision=revision or None, split=hub_split or split)
        except (ValueError, OSError) as error:
            raise MissingError(f"data set {location!r} could not be loaded: {error}") from error

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for index, row in enumerate(self.dataset):
            yield f"{self.name}, row {index}", without_none(row)

    def __getitem__(self, index: int) -> tuple[str, Row]:
        return f"{self.name}, row {index}", without_none(self.dataset[index])


def without_none(value: Any) -> Any:
    """Leave out an Arrow struct's keys without a value, at every depth."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def _json(path: Path) -> Table:
    with path.open("rb") as file:
        first = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return JsonArray(path) if first == b"[" else JsonLines(path)


READERS = {".jsonl": JsonLines, ".json": _json, ".csv": CsvRows, ".parquet": ParquetRows}
