"""Whatever is wrong in other programs' rows is refused by file, row and field, and leaves nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache_builder.errors import DataError, MissingError
from cache_builder.interchange.axolotl import AxolotlSource
from cache_builder.interchange.distillkit import DistillKitSource
from cache_builder.interchange.importing import import_cache
from tests.support import foreign_rows
from tests.support.foreign_rows import EXACT, LEGACY, write_distillkit, write_lines
from tests.support.foreign_teacher import Teacher, first_target, good_rows


def spoil(row: dict[str, Any], how: str) -> None:
    j = first_target(row)
    changes: dict[str, Callable[[], Any]] = {
        "token beyond": lambda: row["input_ids"].__setitem__(0, 300),
        "target beyond": lambda: row["target_token_ids"][j].__setitem__(1, 300),
        "twice": lambda: row["target_token_ids"][j].__setitem__(1, row["target_token_ids"][j][0]),
        "nan": lambda: row["target_logprobs"][j].__setitem__(0, float("nan")),
        "huge": lambda: row["target_logprobs"][j].__setitem__(0, 1e300),
        "text": lambda: row["target_logprobs"][j].__setitem__(0, "−1"),
        "short row": lambda: row["target_logprobs"][j].pop(),
        "few rows": lambda: row["target_token_ids"].pop(),
        "few targets": lambda: [row[name].pop() for name in ("target_logprobs", "target_token_ids", "target_mask")],
        "labels": lambda: row["labels"].pop(),
        "no list": lambda: row.__setitem__("target_token_ids", 7),
        "no tokens": lambda: row.pop("input_ids"),
        "same id": lambda: row.__setitem__("id", "row-0"),
    }
    changes[how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("token beyond", "`input_ids` has the token 300 at place 0, the tokenizer has 300 tokens"),
        ("target beyond", r"the target of token \d+: its target has the token id 300, the tokenizer has 300 tokens"),
        ("twice", r"its target has the token id \d+ twice"),
        ("nan", "expected log-probabilities, got nan"),
        ("huge", r"the target of token \d+: expected log-probabilities, got 1e\+300"),
        ("text", "`target_logprobs`: expected numbers, got '−1'"),
        ("short row", r"`target_token_ids`: expected 2 numbers at place \d+, as the log-probabilities have, got 3"),
        ("few rows", r"`target_token_ids`: expected \d+ lists, as the log-probabilities have, got \d+"),
        ("few targets", r"`target_logprobs`: expected \d+ lists, got \d+"),
        ("labels", r"`labels`: expected \d+ numbers, got \d+"),
        ("no list", "`target_token_ids`: expected a list of lists, got int"),
        ("no tokens", "`input_ids`: expected a list of integers, got none"),
        ("same id", "two examples have the id 'row-0'"),
    ],
)
def test_a_malformed_row_is_refused_by_file_row_and_field_and_leaves_nothing(
    teacher: Teacher, tmp_path: Path, how: str, message: str
) -> None:
    rows = good_rows(teacher)
    spoil(rows[2], how)
    with pytest.raises(DataError, match=message) as error:
        teacher.import_axolotl(rows, tmp_path)
    if how != "same id":
        assert str(error.value).startswith(f"{tmp_path / 'rows.jsonl'}, row 2")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_files_that_are_not_what_they_should_be_are_refused(teacher: Teacher, tmp_path: Path) -> None:
    rows = good_rows(teacher)
    path = write_lines(tmp_path / "rows.jsonl", rows)
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=r"row 3: expected one JSON object per line, got '\{"):
        import_cache(AxolotlSource(path, teacher.tokenizer), str(tmp_path / "cache"), teacher.tokenizer)
    with pytest.raises(DataError, match="expected `target_logprobs` or `lp`, got input_ids"):
        AxolotlSource(
            write_lines(tmp_path / "bare.jsonl", [{"input_ids": [1]}]), teacher.tokenizer, logprobs_field="lp"
        )
    with pytest.raises(MissingError, match="no such file or folder"):
        AxolotlSource(tmp_path / "nowhere", teacher.tokenizer)
    with pytest.raises(DataError, match=r"expected \.parquet files, all of one kind, got rows\.jsonl"):
        DistillKitSource(path, teacher.tokenizer, None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    (tmp_path / "compression_config.yaml").write_text(json.dumps(EXACT))
    with pytest.raises(DataError, match=r"rows\.parquet: expected a Parquet file"):
        source = DistillKitSource(tmp_path / "rows.parquet", teacher.tokenizer, None)
        import_cache(source, str(tmp_path / "cache"), teacher.tokenizer)
    assert not list(tmp_path.glob("cache*"))


def test_distillkits_rows_of_another_codec_or_tokenizer_are_refused(teacher: Teacher, tmp_path: Path) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    other = tmp_path / "other.yaml"
    for changes, message in (
        (
            {"k": 9, "exact_k": 9},
            r"data_0\.parquet, row 0: `compressed_logprobs`, place 0: expected 36 numbers, got 32",
        ),
        ({"d": 70_000}, r"`bytepacked_indices`, place 0: expected 17 numbers, got 9"),
        ({"exact_dtype": "float16", "k": 16, "exact_k": 16}, r"`bytepacked_indices`, place 0: expected 18"),
    ):
        other.write_text(json.dumps({**EXACT, **changes}))
        with pytest.raises(DataError, match=message):
            next(DistillKitSource(source, teacher.tokenizer, other).rows())
    other.write_text(json.dumps(LEGACY))
    with pytest.raises(DataError, match="expected the columns input_ids, packed_indices, exact_values, coeffs, got"):
        next(DistillKitSource(source, teacher.tokenizer, other).rows())
    rows = foreign_rows.distillkit_rows(teacher.model, teacher.sequences[:1], EXACT)
    rows[0]["compressed_logprobs"] = rows[0]["compressed_logprobs"][:-2]
    with pytest.raises(DataError, match=r"expected a target for each of (\d+) tokens, .* in `compressed_logprobs`"):
        next(DistillKitSource(write_distillkit(tmp_path / "short", rows, EXACT), teacher.tokenizer, None).rows())
