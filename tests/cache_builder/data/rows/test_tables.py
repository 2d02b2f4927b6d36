"""Files are read as they are written, or refused by file and line."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_builder.config import DataConfig
from cache_builder.data.rows.tables import BATCH_ROWS, open_table
from cache_builder.data.splits import load_splits
from cache_builder.errors import DataError

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6)


def table(path: Path, content: bytes | str) -> Any:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_table(str(path), "data.train", "train")


def test_csv_cells_are_text_as_written(tmp_path: Path) -> None:
    rows = table(tmp_path / "t.csv", 'a,b,c\n007,1.10,NA\nNULL,,"x, ""y""\nz"\nTrue,None,1e3\n')
    assert [row for _, row in rows] == [
        {"a": "007", "b": "1.10", "c": "NA"},
        {"a": "NULL", "b": "", "c": 'x, "y"\nz'},
        {"a": "True", "b": "None", "c": "1e3"},
    ]
    assert [where.rpartition(", ")[2] for where, _ in rows] == ["line 2", "line 3", "line 5"]
    assert rows[1] == list(rows)[1]


def test_csv_may_begin_with_a_byte_order_mark_and_have_windows_line_ends(tmp_path: Path) -> None:
    rows = table(tmp_path / "t.csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,4\r\n")
    assert [row for _, row in rows] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_an_empty_cell_is_a_key_that_a_row_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,prompt,completion,answer\n,red?,green,\n007,blue?,amber,NA\n")
    first, second = load_splits(DataConfig(train=str(tmp_path / "t.csv"), validation_fraction=0), 0)["train"]
    assert first["id"] == "train-0" and "answer" not in first
    assert second["id"] == "007" and second["answer"] == "NA"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"a,b\n1,2\n1,2,3\n", r"t\.csv, line 3: expected 2 cells \(a, b\), got 3"),
        (b"a,b\n1\n", r"t\.csv, line 2: expected 2 cells"),
        (b"a,a\n1,2\n", r"t\.csv, line 1: expected a header of different names"),
        (b'a,b\n1,"2\n', r"t\.csv, line 2: not CSV"),
        (b'a,b\n1,"2"x\n', r"t\.csv, line 2: not CSV"),
        (b"a,b\n1,\xe9\n", r"t\.csv, line 2: not UTF-8 at byte 2"),
        (b"a,b\n1,\0\n", r"t\.csv, line 2: it has a NUL"),
        ("a,b\n1,2\n".encode("utf-16"), r"t\.csv, line 1: "),
        (b"", r"t\.csv is empty"),
        (b"a,b\n", "is empty; at least one example"),
    ],
)
def test_damaged_csv_is_refused_by_file_and_line(tmp_path: Path, content: bytes, named: str) -> None:
    with pytest.raises(DataError, match=named):
        list(table(tmp_path / "t.csv", content))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"a": 1}\n{"a":\n', r"t\.jsonl, line 2: expected one JSON object per line"),
        (b'{"a": 1}\n\n[1]\n', r"t\.jsonl, line 3: expected one JSON object per line, got list"),
        (b'{"a": "\xe9"}\n', r"t\.jsonl, line 1: not UTF-8"),
        (b'{"a": NaN}\n', r"t\.jsonl, line 1: .*NaN is not JSON"),
        (b'{"a": 1, "a": 2}\n', r"t\.jsonl, line 1: .*the key 'a' occurs twice"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", r"t\.jsonl, line 1: JSON nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", r"t\.jsonl, line 1"),
        ('{"a": 1}\n'.encode("utf-16"), r"t\.jsonl, line 1: "),
        (b'{"a": "b\0c"}\n', r"t\.jsonl, line 1"),
        (b"\0\0\0\0\0", r"t\.jsonl, line 1"),
        (b" \n\n", "is empty; at least one example"),
    ],
)
def test_damaged_json_lines_are_refused_by_file_and_line(tmp_path: Path, content: bytes, named: str) -> None:
    with pytest.raises(DataError, match=named):
        list(table(tmp_path / "t.jsonl", content))


def test_json_lines_are_read_by_line_feeds_alone_and_in_any_order(tmp_path: Path) -> None:
    rows = [{"a": "x\u2028y"}, {"b": {"c": [1, None]}}, {"a": None}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    read = table(tmp_path / "t.jsonl", "\ufeff" + lines)
    assert [row for _, row in read] == rows and len(read) == 3
    assert read[2] == (f"{tmp_path}/t.jsonl, line 5", {"a": None})
    assert read[0][1] == rows[0]


def test_json_is_an_array_or_lines(tmp_path: Path) -> None:
    assert [row for _, row in table(tmp_path / "t.json", ' \n[{"a": 1},\n {"a": 2}]')] == [{"a": 1}, {"a": 2}]
    assert [row for _, row in table(tmp_path / "t.json", '{"a": 1}\n{"a": 2}\n')] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"t\.json, row 1: expected a JSON object, got int"):
        table(tmp_path / "t.json", '[{"a": 1}, 2]')


def test_parquet_rows_are_read_in_any_order_and_without_arrows_empty_keys(tmp_path: Path) -> None:
    rows = [{"n": index, "call": {"a": 1} if index % 2 else {"b": "x"}} for index in range(2 * BATCH_ROWS + 3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=100)
    read = open_table(str(tmp_path / "t.parquet"), "data.train", "train")
    assert [row for _, row in read] == rows
    for index in (5, 2 * BATCH_ROWS, 0, BATCH_ROWS, BATCH_ROWS - 1):
        assert read[index][1] == rows[index]


def test_a_pattern_is_its_files_in_order(tmp_path: Path) -> None:
    for name, first in (("b", 2), ("a", 0)):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"n": {first}}}\n{{"n": {first + 1}}}\n')
    read = open_table(str(tmp_path / "*.jsonl"), "data.train", "train")
    assert [row["n"] for _, row in read] == [0, 1, 2, 3] == [read[index][1]["n"] for index in range(4)]
    assert read[2][0] == f"{tmp_path}/b.jsonl, line 1"


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.binary(max_size=60), st.sampled_from(["jsonl", "json", "csv", "parquet"]))
def test_a_file_of_any_bytes_is_read_or_refused_by_name(tmp_path_factory: Any, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    try:
        list(table(path, content))
    except DataError as error:
        assert path.name in str(error)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6), min_size=2, max_size=2),
        min_size=1,
    )
)
def test_csv_reads_back_what_was_written(tmp_path_factory: Any, rows: list[list[str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "back.csv"
    lines = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    read = table(path, "a,b\n" + "\n".join(lines) + "\n")
    assert [list(row.values()) for _, row in read] == rows
    assert [list(read[index][1].values()) for index in range(len(rows))] == rows
