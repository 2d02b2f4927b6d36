"""A file's content decides whether it is the same file; sizes and times only save reading it again."""

import json
import os
import time
from pathlib import Path

import pytest

from cache_builder.data import digests
from cache_builder.data.digests import check_files, content_digests, sha256_of
from cache_builder.errors import CacheDamagedError


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """A file that is noted, in notes that say it had been left alone for an hour."""
    path = tmp_path / "data.jsonl"
    path.write_text("label A\n")
    content_digests([path], tmp_path / "notes.json")
    notes = json.loads((tmp_path / "notes.json").read_text())
    notes[str(path)]["noted"] += 3600 * 10**9
    (tmp_path / "notes.json").write_text(json.dumps(notes))
    return path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the paths that are read from now on, as they are."""
    read: list[Path] = []
    monkeypatch.setattr(digests, "sha256_of", lambda path: (read.append(path), sha256_of(path))[1])
    return read


def test_a_file_that_did_not_change_is_not_read_again(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reads(monkeypatch)
    assert content_digests([settled], settled.with_name("notes.json")) == {str(settled): sha256_of(settled)}
    assert read == []


def test_a_change_that_keeps_size_and_modification_time_is_noticed(settled: Path) -> None:
    before = settled.stat()
    settled.write_text("label B\n")
    os.utime(settled, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (settled.stat().st_size, settled.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert content_digests([settled], settled.with_name("notes.json"))[str(settled)] == sha256_of(settled)


def test_a_file_that_was_changed_just_before_it_was_noted_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("label A\n")
    content_digests([path], tmp_path / "notes.json")
    read = reads(monkeypatch)
    content_digests([path], tmp_path / "notes.json")
    assert read == [path]


@pytest.mark.parametrize("notes", ["", "[]", "{}", '{"PATH": 3}', '{"PATH": {"state": 1}}', "[" * 100_000])
def test_damaged_notes_are_as_good_as_none(tmp_path: Path, notes: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("label A\n")
    (tmp_path / "notes.json").write_text(notes.replace("PATH", str(path)))
    assert content_digests([path], tmp_path / "notes.json") == {str(path): sha256_of(path)}


def test_damage_is_found_once_the_file_has_changed_and_named(tmp_path: Path) -> None:
    path = tmp_path / "tokens.u32"
    path.write_bytes(b"1234")
    expected = {"tokens.u32": sha256_of(path)}
    check_files(tmp_path, expected, "the corpus", "make it again")
    time.sleep(0.02)
    path.write_bytes(b"1235")
    with pytest.raises(CacheDamagedError, match=r"tokens\.u32 does not have the bytes .*the corpus is damaged: make"):
        check_files(tmp_path, expected, "the corpus", "make it again")
    path.unlink()
    with pytest.raises(CacheDamagedError, match=r"tokens\.u32 is missing"):
        check_files(tmp_path, expected, "the corpus", "make it again")
