"""Tables as lists of records: one row, one record; sorted, written as CSV and JSON, and shown from the same records."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_builder.atomic import write_text

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""
Value = str | int | float | None
"""What a table may hold; None is an empty cell."""
Record = dict[str, Value]
"""One row of a table: column -> value, in the columns' order."""


@dataclass(frozen=True)
class DataTable:
    """Records as a CSV file, in tables.json and, where `shown`, as a table of the page."""

    name: str
    title: str
    rows: list[Record]
    shown: bool = True
    unfolded: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in the order in which they first appear."""
        return list(dict.fromkeys(column for row in self.rows for column in row))


def write_csv(path: Path, table: DataTable) -> None:
    """Write a table's records under its columns' names; None is an empty cell, numbers keep all their digits.

    A text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow([_inert(column) for column in table.columns])
    writer.writerows([_inert(row.get(column)) for column in table.columns] for row in table.rows)
    write_text(path, file.getvalue())


def write_tables(path: Path, tables: Sequence[DataTable]) -> None:
    """Write all records as one JSON document, table -> rows, for programs; what is not finite is null."""
    document = {
        table.name: [{key: _plain(value) for key, value in row.items()} for row in table.rows] for table in tables
    }
    write_text(path, json.dumps(document, ensure_ascii=False))


def _inert(value: Value) -> Value:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _plain(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
