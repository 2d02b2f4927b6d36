"""A cache as plain Parquet: what other programs read from it is what `Cache.read` returns, to the bit."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.errors import CacheIncompleteError, CacheMismatchError, CacheWriteError
from cache_builder.interchange import exporting
from cache_builder.interchange.exporting import export_cache
from tests.cache_builder.cli.test_cache_commands import call
from tools.make_fixture_cache import FOLDER as FIXTURE_FOLDER

PER_POSITION = ("ids", "logp", "samples", "log_tail", "gold", "entropy")
SEQUENCES = 20


@pytest.fixture(scope="module")
def cache(built: Path) -> Cache:
    return open_cache(str(built))


def assert_equals(rows: Any, cache: Cache, name: str) -> None:
    """Rows as plain values against the cache, NaN and −∞ included."""
    assert len(rows) == len(cache.corpus)
    losses = cache.losses(name)
    for number, row in enumerate(rows):
        tokens, completion = cache.corpus.sequence(number)
        assert row["sample_id"] == cache.corpus.sample_ids[number]
        assert row["input_ids"] == tokens.tolist()
        assert row["completion"] == completion.tolist()
        np.testing.assert_array_equal(row["loss"], losses[number])
        targets = cache.read(name, [number])
        for field in PER_POSITION:
            expected = getattr(targets, field)
            if expected.ndim == 1 or expected.shape[1]:
                np.testing.assert_array_equal(np.array(row[field]).reshape(expected.shape), expected, err_msg=field)
            else:
                assert field not in row


@pytest.mark.parametrize("positions", [exporting.GROUP_POSITIONS, 7])
def test_an_export_read_by_datasets_is_what_the_cache_says(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    monkeypatch.setattr(exporting, "GROUP_POSITIONS", positions)
    path = tmp_path / "new" / "out.parquet"
    assert export_cache(cache, path, "step-1") == SEQUENCES
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "hub"))
    assert_equals(rows, cache, "step-1")
    groups = pq.ParquetFile(path).metadata.num_row_groups
    assert groups == 1 if positions > 40 else groups > 4
    assert [file.name for file in path.parent.iterdir()] == ["out.parquet"]


def test_the_fixture_of_version_1_is_exported_with_its_manifest_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "fixture.parquet"
    assert "12 sequences" in call("export", FIXTURE_FOLDER, path, "--checkpoint", "step-2")
    cache, file = open_cache(str(FIXTURE_FOLDER)), pq.ParquetFile(path)
    about = json.loads(file.schema_arrow.metadata[b"footsteps"])
    assert about["manifest"] == cache.manifest.model_dump(mode="json")
    assert about["identity"]["name"] == "step-2" and about["held_out_loss"] == cache.held_out("step-2")
    assert str(file.schema_arrow.field("ids").type) == "list<element: fixed_size_list<element: uint32>[4]>"
    assert_equals(file.read().to_pylist(), cache, "step-2")


def test_an_export_is_whole_or_not_there(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.parquet"
    monkeypatch.setattr(exporting, "GROUP_POSITIONS", 7)
    table, calls = exporting._table, 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        return table(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "_table", failing)
        with pytest.raises(CacheWriteError, match=r"cannot write .*out\.parquet .*no space is left"):
            export_cache(cache, path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out.parquet.part").write_bytes(b"of an export that was killed")
    export_cache(cache, path)
    assert_equals(pq.ParquetFile(path).read().to_pylist(), cache, "step-2")
    assert [file.name for file in tmp_path.iterdir()] == ["out.parquet"]
    with pytest.raises(CacheMismatchError, match="is there already; remove it, or choose another file"):
        export_cache(cache, path)
    with pytest.raises(CacheIncompleteError, match="does not know checkpoint 'step-9'"):
        export_cache(cache, tmp_path / "other.parquet", "step-9")
