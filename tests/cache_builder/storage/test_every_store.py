"""What every place for caches does alike, by the protocols of storage/base.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cache_builder.errors import CacheBusyError, CacheDamagedError
from cache_builder.storage.base import Store
from cache_builder.storage.open import open_store

PLACES: dict[str, Callable[[Path], str]] = {
    "folder": str,
    "file URL": lambda folder: folder.as_uri(),
    "object store": lambda folder: f"memory://{folder}",
}
"""A URL below a folder of the test's own, by what it shows."""

FILES = {"zarr.json": b"{}", "a/b/c": bytes(range(256)), "a/b_": b"\x00", "a%/b": b"other", "ab": b""}


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(PLACES[request.param](tmp_path / "cache"))


@pytest.fixture
def filled(store: Store) -> Store:
    for key, data in FILES.items():
        store.commit(key, data)
    return store


def test_what_is_committed_is_read_back_in_whole_and_in_parts(filled: Store) -> None:
    assert {key: filled.read(key) for key in FILES} == FILES
    assert filled.read_range("a/b/c", 10, 20) == bytes(range(10, 30))
    assert filled.read_tail("a/b/c", 6) == bytes(range(250, 256))
    filled.commit("a/b/c", b"another")
    assert filled.read("a/b/c") == b"another"


def test_files_are_listed_by_their_folder_with_their_sizes(filled: Store) -> None:
    assert filled.sizes("") == {key: len(data) for key, data in FILES.items()}
    assert filled.sizes("a") == {"a/b/c": 256, "a/b_": 1}
    assert filled.sizes("none") == {}
    assert filled.size("a/b/c") == 256 and filled.size("ab") == 0 and filled.exists("ab")


def test_what_is_not_there_raises_and_is_never_filled_in(filled: Store) -> None:
    for key in ("none", "a/b/none", "a"):
        assert not filled.exists(key) and filled.size(key) is None
        with pytest.raises(CacheDamagedError):
            filled.read(key)
    for read in (filled.read_range, lambda key, start, size: filled.read_tail(key, size)):
        with pytest.raises(CacheDamagedError):
            read("none", 0, 1)
        with pytest.raises(CacheDamagedError):
            read("a/b/c", 0, 257)


def test_what_is_removed_is_gone_and_nothing_else(filled: Store) -> None:
    filled.remove("ab")
    filled.remove_tree("a")
    filled.remove_tree("none")
    assert filled.sizes("") == {"zarr.json": 2, "a%/b": 5}
    assert not filled.exists("a/b/c")


def test_a_part_has_one_builder_and_the_locks_leave_nothing_behind(filled: Store) -> None:
    with filled.lock_part((0, 2)), filled.lock_part((1, 2)):
        for clash in ((0, 2), (0, 1), (2, 3)):
            with pytest.raises(CacheBusyError), filled.lock_part(clash):
                pass
        with filled.exclusive():
            filled.commit("ab", b"for all")
    with filled.lock_part((0, 1)), filled.join_as_worker():
        assert filled.read("ab") == b"for all"
    assert filled.sizes("").keys() == FILES.keys()
