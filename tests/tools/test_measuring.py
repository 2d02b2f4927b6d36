"""Rows of measurements stay under the columns that they were measured for."""

import csv
from pathlib import Path

import pytest

from tools import measuring


def test_a_new_column_moves_no_figure_and_leaves_older_rows_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    measuring.append_rows("rows.csv", [{"variant": "a, b", "seconds": 1}])
    before = (tmp_path / "rows.csv").read_text()
    measuring.append_rows("rows.csv", [{"variant": "c", "seconds": 2}])
    assert (tmp_path / "rows.csv").read_text().startswith(before)
    measuring.append_rows("rows.csv", [{"variant": "d", "processor_ratio": 0.5}])
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["commit", "hardware", "variant", "seconds", "processor_ratio"]
    figures = [(row["variant"], row["seconds"], row["processor_ratio"]) for row in rows]
    assert figures == [("a, b", "1", ""), ("c", "2", ""), ("d", "", "0.5")]
