from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_builder.cache.reader import open_cache
from cache_builder.cache.writer import CheckpointWriter, create_cache, write_order, write_probe
from cache_builder.errors import CacheIncompleteError
from cache_builder.format.manifest import (
    CheckpointIdentity,
    CheckpointOrder,
    seal,
    unseal,
)
from cache_builder.format.records import quantise
from cache_builder.storage.local import LocalStore
from tests.support.caches import files_of
from tools.make_fixture_cache import FIXTURE
from tools.make_fixture_cache import FOLDER as FIXTURE_FOLDER
from tools.synthetic_cache import manifest_of, write_synthetic_cache

IDENTITY = CheckpointIdentity(
    name="step-1", weights_fingerprint="made up 0", dtype="float32", attn_implementation="none"
)


@pytest.fixture
def writer(tmp_path: Path) -> CheckpointWriter:
    """A writer of the fixture's first checkpoint, begun in a fresh cache."""
    corpus = FIXTURE.corpus()
    store, manifest = LocalStore(tmp_path / "cache"), manifest_of(FIXTURE, corpus)
    create_cache(store, manifest, corpus)
    write_order(store, ["step-1"])
    probe = FIXTURE.targets(0, 0, int(corpus.position_offsets[3]))
    write_probe(store, IDENTITY, np.arange(3), probe.ids.astype(np.uint32))
    writer = CheckpointWriter(store, manifest, "step-1")
    writer.begin(IDENTITY)
    return writer


def write_shard(writer: CheckpointWriter, shard: int) -> None:
    writer.write_shard(shard, FIXTURE.targets(0, *writer.spec.span(shard)))


def write_probe_pass(writer: CheckpointWriter) -> None:
    probe = FIXTURE.targets(0, 0, int(FIXTURE.position_offsets()[3]))
    writer.write_probe_pass(1.0, quantise(probe.logp, 256), probe.log_tail)


def test_shards_in_any_order_make_the_fixtures_bytes(writer: CheckpointWriter) -> None:
    for shard in reversed(range(writer.n_shards)):
        assert not writer.finish(FIXTURE.position_offsets())
        write_shard(writer, shard)
    assert not writer.finish(FIXTURE.position_offsets())
    write_probe_pass(writer)
    assert writer.finish(FIXTURE.position_offsets())
    ours = files_of(writer.store.folder / "checkpoints" / "step-1")  # type: ignore[attr-defined]
    assert ours == files_of(FIXTURE_FOLDER / "checkpoints" / "step-1")


def test_a_shard_without_its_ledger_entry_is_not_there(
    writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = LocalStore.commit

    def commit_no_ledger(self: LocalStore, key: str, data: bytes) -> None:
        if "/ledger/" in key:
            raise KeyboardInterrupt
        commit(self, key, data)

    monkeypatch.setattr(LocalStore, "commit", commit_no_ledger)
    with pytest.raises(KeyboardInterrupt):
        write_shard(writer, 0)
    monkeypatch.undo()
    assert writer.store.exists("checkpoints/step-1/records/c/0/0")
    assert writer.shards_done() == {}
    assert not writer.is_shard_done(0)


@pytest.mark.parametrize("damage", ["shard cut", "entry changed", "shard gone"])
def test_an_unfinished_unit_that_was_damaged_counts_as_not_done(writer: CheckpointWriter, damage: str) -> None:
    write_shard(writer, 0)
    write_shard(writer, 1)
    assert sorted(writer.shards_done()) == [0, 1]
    folder = writer.store.folder / "checkpoints" / "step-1"  # type: ignore[attr-defined]
    shard, entry = folder / "records/c/0/0", folder / "ledger/0.json"
    if damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "shard gone":
        shard.unlink()
    else:
        entry.write_bytes(entry.read_bytes().replace(b"1", b"2", 1))
    assert sorted(writer.shards_done()) == [1]
    assert [writer.is_shard_done(shard) for shard in (0, 1)] == [False, True]


def test_a_damaged_chunk_stops_the_checkpoint_from_being_completed(writer: CheckpointWriter) -> None:
    for shard in range(writer.n_shards):
        write_shard(writer, shard)
    write_probe_pass(writer)
    shard_file = writer.store.folder / "checkpoints/step-1/records/c/0/0"  # type: ignore[attr-defined]
    data = bytearray(shard_file.read_bytes())
    data[10] ^= 1
    shard_file.write_bytes(data)
    with pytest.raises(OSError, match="records/c/0/0 is damaged: chunk 0 fails its checksum"):
        writer.finish(FIXTURE.position_offsets())
    assert not writer.is_complete()


def test_what_is_left_of_the_build_is_cleared_when_it_was_killed_after_completing(writer: CheckpointWriter) -> None:
    for shard in range(writer.n_shards):
        write_shard(writer, shard)
    write_probe_pass(writer)
    writer.finish(FIXTURE.position_offsets())
    before = files_of(writer.store.folder)  # type: ignore[attr-defined]
    writer.store.commit("checkpoints/step-1/ledger/0.json", b"left over")
    assert writer.finish(FIXTURE.position_offsets())
    assert files_of(writer.store.folder) == before  # type: ignore[attr-defined]


def test_checkpoints_keep_their_order_when_others_are_added(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)

    def order() -> list[str]:
        return unseal(CheckpointOrder, store.read("checkpoints/zarr.json"), "order").order

    write_order(store, ["b"])
    write_order(store, ["a", "b", "c"])
    assert order() == ["a", "b", "c"]
    write_order(store, ["b"])
    write_order(store, ["d"])
    assert order() == ["a", "b", "c", "d"]


def test_a_cache_without_a_corpus_does_not_open(tmp_path: Path) -> None:
    corpus = FIXTURE.corpus()
    LocalStore(tmp_path).commit("zarr.json", seal(manifest_of(FIXTURE, corpus)))
    with pytest.raises(CacheIncompleteError, match="has no corpus yet"):
        open_cache(str(tmp_path))


def test_the_layout_changes_where_records_lie_and_nothing_that_is_read(tmp_path: Path) -> None:
    other = replace(FIXTURE, shard_positions=32, chunk_positions=8)
    write_synthetic_cache(LocalStore(tmp_path), other)
    one, two = open_cache(str(FIXTURE_FOLDER)), open_cache(str(tmp_path))
    for name in one.checkpoints:
        np.testing.assert_array_equal(one.losses(name), two.losses(name))
        a, b = one.read(name, range(12)), two.read(name, range(12))
        for field in vars(a):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
