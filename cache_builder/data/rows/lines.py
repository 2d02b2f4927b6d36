"""Rows of JSON lines and CSV files, found once and then read one at a time, so that memory is flat.

    byte offset of each row, i64 [n]  ─▶  seek, decode, parse            JSON: one object a line
                                                                         CSV: a record, whose quotes may span lines

A cell of a CSV file is text as it is written: `007` stays `007`, `NA` is two letters, an empty cell is "".
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cache_builder.errors import DataError

BLOCK_BYTES = 1 << 22
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FIELD_CHARACTERS = 1 << 30
"""Of a CSV cell at most; the csv module's own limit is 131,072."""
Row = dict[str, Any]


class JsonLines:
    """A file with one JSON object per line; empty lines are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets, self.line_numbers = _find_lines(path)

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        with self.path.open("rb") as file:
            for index in range(len(self)):
                yield self._read(file, index)

    def __getitem__(self, index: int) -> tuple[str, Row]:
        with self.path.open("rb") as file:
            return self._read(file, index)

    def _read(self, file: BinaryIO, index: int) -> tuple[str, Row]:
        file.seek(int(self.offsets[index]))
        where = f"{self.path}, line {self.line_numbers[index]}"
        return where, parse_object(decode(file.readline().removeprefix(BYTE_ORDER_MARK), where), where)


class CsvRows:
    """A CSV file with a header; every record has exactly its cells.

    Raises:
        DataError: it has no header, a name occurs twice, or a record has more or fewer cells, or is not CSV.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets: list[int] = []
        self.line_numbers: list[int] = []
        self.columns: list[str] = []
        with path.open("rb") as file:
            for offset, line_number, cells in _records(file, path, 0, 0):
                if not self.columns:
                    self.columns = _header(cells, path)
                elif cells:
                    self._check(cells, line_number)
                    self.offsets.append(offset)
                    self.line_numbers.append(line_number)
        if not self.columns:
            raise DataError(f"{path} is empty; expected a header with the columns' names")

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> tuple[str, Row]:
        with self.path.open("rb") as file:
            offset, line_number = self.offsets[index], self.line_numbers[index]
            cells = next(_records(file, self.path, offset, line_number - 1))[2]
        self._check(cells, line_number)
        return f"{self.path}, line {line_number}", dict(zip(self.columns, cells, strict=True))

    def _check(self, cells: list[str], line_number: int) -> None:
        if len(cells) != len(self.columns):
            raise DataError(
                f"{self.path}, line {line_number}: expected {len(self.columns)} cells "
                f"({', '.join(self.columns)}), got {len(cells)}; quote cells that hold commas"
            )


def decode(line: bytes, where: str) -> str:
    """Return a line as text.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 at byte {error.start} ({line[error.start]:#04x}); convert the file to UTF-8"
        ) from None


def parse_object(text: str, where: str) -> Row:
    """Return one JSON object.

    Raises:
        DataError: it is not one, is nested too deeply, names a key twice, or has NaN or an infinity.
    """
    try:
        row = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply to be read; flatten the row") from None
    except ValueError as error:
        shown = text.strip()[:40]
        raise DataError(f"{where}: expected one JSON object per line, got {shown!r}: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected one JSON object per line, got {type(row).__name__}")
    return row


def _find_lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return where each line begins that is not empty, i64 [n], and its number from 1."""
    ends: list[np.ndarray] = []
    size = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + size)
            size += len(block)
    starts = np.concatenate([[0], *(end + 1 for end in ends)]).astype(np.int64)
    stops = np.append(starts[1:], size)
    numbers = np.arange(1, len(starts) + 1)
    short = np.flatnonzero(stops - starts <= 3)  # so short a line may be blank; longer ones of spaces alone are errors
    blank = []
    with path.open("rb") as file:
        for index in short:
            file.seek(int(starts[index]))
            if not file.read(int(stops[index] - starts[index])).removeprefix(BYTE_ORDER_MARK).strip():
                blank.append(index)
    return np.delete(starts, blank), np.delete(numbers, blank)


def _records(file: BinaryIO, path: Path, offset: int, line_number: int) -> Iterator[tuple[int, int, list[str]]]:
    """Yield (byte offset, number of the first line from 1, cells) of each record from an offset on."""
    csv.field_size_limit(FIELD_CHARACTERS)
    file.seek(offset)
    lines = _Lines(file, path, offset, line_number)
    reader = csv.reader(lines, strict=True)
    while True:
        start, first = lines.offset, lines.line_number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}, line {first}: not CSV ({error}); quote cells that hold quotes or commas"
            ) from None
        yield start, first, cells


class _Lines:
    """Decodes a file's lines and knows how far they have been read."""

    def __init__(self, file: BinaryIO, path: Path, offset: int, line_number: int) -> None:
        self.file, self.path, self.offset, self.line_number = file, path, offset, line_number

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        self.line_number += 1
        where = f"{self.path}, line {self.line_number}"
        if b"\0" in line:
            raise DataError(f"{where}: it has a NUL byte; the file is not CSV text, or not UTF-8")
        text = decode(line.removeprefix(BYTE_ORDER_MARK) if self.offset == 0 else line, where)
        self.offset += len(line)
        return text


def _header(cells: list[str], path: Path) -> list[str]:
    if not all(cells) or len(set(cells)) < len(cells):
        raise DataError(f"{path}, line 1: expected a header of different names, got {cells}")
    return cells


def _once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
