"""An import is deterministic, survives kills, is the same in every store, and says what it lacks."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cache_builder.build.audit import audit_cache
from cache_builder.cache.reader import open_cache
from cache_builder.cli.cache import cache as cache_command
from cache_builder.errors import CacheMismatchError, ConfigError, DataError
from cache_builder.interchange.distillkit import DistillKitSource
from cache_builder.interchange.importing import import_cache
from cache_builder.storage.open import open_store
from tests.cache_builder.cli.test_cache_commands import call
from tests.cache_builder.interchange.test_exporting import assert_equals
from tests.support import foreign_rows
from tests.support.caches import files_of
from tests.support.foreign_rows import EXACT, write_distillkit
from tests.support.foreign_teacher import SEQUENCES, Teacher


def test_an_import_is_deterministic_kept_and_never_mixed_with_another(teacher: Teacher, tmp_path: Path) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    first, again = tmp_path / "first", tmp_path / "again"
    teacher.import_distillkit(source, first)
    teacher.import_distillkit(source, again)
    assert files_of(first) == files_of(again)
    teacher.import_distillkit(source, first)
    assert files_of(first) == files_of(again)
    with pytest.raises(CacheMismatchError, match=r"imported\.tail: it has 'complement', now 'none'"):
        teacher.import_distillkit(source, first, tail="none")
    with pytest.raises(CacheMismatchError, match="already holds these rows as checkpoint 'imported'"):
        teacher.import_distillkit(source, first, name="other")
    with pytest.raises(ConfigError, match="--tail complement needs --temperature 1, got 2"):
        teacher.import_distillkit(source, tmp_path / "hot", tail="complement", temperature=2.0)
    with pytest.raises(CacheMismatchError, match="was imported from distillkit rows and nothing can be built into it"):
        teacher.teaching.build(first)
    with pytest.raises(CacheMismatchError, match="do not say which weights gave them"):
        audit_cache(teacher.teaching.experiment(first), teacher.teaching.checkpoints)
    assert files_of(first) == files_of(again)


def test_shards_are_cut_through_sequences(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    whole, _ = teacher.import_distillkit(source, tmp_path / "whole")
    foreign_rows.cut_small(monkeypatch.setattr)
    cut, _ = teacher.import_distillkit(source, tmp_path / "cut")
    assert len(list((tmp_path / "cut/checkpoints/imported/records/c/0").iterdir())) > 1
    for field in ("ids", "logp", "log_tail", "gold"):
        one, other = (getattr(cache.read("imported", range(SEQUENCES)), field) for cache in (whole, cut))
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.losses("imported"), cut.losses("imported"))


def test_an_import_to_an_object_store_has_the_bytes_of_a_local_one(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    teacher.import_distillkit(source, tmp_path / "local")
    import_cache(DistillKitSource(source, teacher.tokenizer, None), "memory://imported", teacher.tokenizer)
    store = open_store("memory://imported")
    assert {key: store.read(key) for key in store.sizes("")} == files_of(tmp_path / "local")
    rows = foreign_rows.distillkit_rows(teacher.model, teacher.sequences[:1], EXACT)
    rows[0]["input_ids"][0] = 999
    other = write_distillkit(tmp_path / "other", rows, EXACT)
    with pytest.raises(DataError, match="the tokenizer has 300 tokens"):
        import_cache(DistillKitSource(other, teacher.tokenizer, None), "memory://other", teacher.tokenizer)
    assert not list(temporary.iterdir())


def test_a_killed_import_continues_to_the_same_bytes(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    foreign_rows.cut_small(monkeypatch.setattr)
    teacher.import_distillkit(source, tmp_path / "whole")
    command = [sys.executable, "-m", "tests.support.foreign_rows", source, teacher.teaching.folder / "tokenizer"]
    result = subprocess.run([*command, tmp_path / "killed"], capture_output=True, text=True, check=True)
    assert int(result.stdout) > 3
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert not (tmp_path / "killed.import").exists()


def test_the_commands_say_what_an_imported_cache_lacks(teacher: Teacher, tmp_path: Path) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    options = ("--format", "distillkit", "--tokenizer", teacher.teaching.folder / "tokenizer")
    printed = call("import", source, tmp_path / "cache", *options)
    assert f"complete, {SEQUENCES} sequences, top 8, tail: complement; 0 rows and 0 tokens" in printed
    facts = json.loads(call("info", tmp_path / "cache", "--json"))
    assert facts["version"] == 2 and facts["imported"]["format"] == "distillkit"
    row = facts["checkpoints"][0]
    cache = open_cache(str(tmp_path / "cache"))
    assert row["loss"] is None and row["sequences_without_loss"] == np.isnan(cache.losses("imported")).sum() > 0
    assert row["retained_mass"]["mean"] < 1 and row["weights_fingerprint"].startswith("imported:")
    text = call("info", tmp_path / "cache")
    assert "imported from distillkit rows: tail one minus the stored tokens' mass; no entropy" in text
    assert "all as committed" in call("verify", tmp_path / "cache")
    call("import", source, tmp_path / "bare", *options, "--tail", "none", "--name", "bare")
    assert json.loads(call("info", tmp_path / "bare", "--json"))["checkpoints"][0]["retained_mass"] is None
    assert "tail not known" in call("info", tmp_path / "bare")
    assert {"import", "export"} <= set(cache_command.commands)
    assert f"{SEQUENCES} sequences" in call("export", tmp_path / "bare", tmp_path / "bare.parquet")
    assert_equals(
        pq.ParquetFile(tmp_path / "bare.parquet").read().to_pylist(), open_cache(str(tmp_path / "bare")), "bare"
    )
