"""Reading a cache at a URL through a bounded copy: the same data, never above the bound, killed, damaged, shared."""

import fcntl
import os
import pickle
import random
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_builder.cache import disk_cache as local_copy
from cache_builder.cache.disk_cache import DISK_BLOCK_BYTES, OWN_BYTES, LocalCopy
from cache_builder.cache.reader import Cache, open_cache
from cache_builder.errors import CacheDamagedError, CacheWriteError
from cache_builder.format.zarr_shards import crc32c
from cache_builder.sharing.copy_plan import plan_copy
from cache_builder.sharing.transfer import copy_cache
from cache_builder.storage.local import LocalStore
from cache_builder.storage.object_store import RemoteStore
from cache_builder.targets.sparse import Targets
from tests.support.toys import load_toy
from tools.synthetic_cache import Synthetic, write_synthetic_cache
from trainer.config import Experiment
from trainer.stages.distill import distill

MADE = Synthetic(
    sequences=120,
    vocabulary=500,
    top_k=4,
    tail_samples=2,
    checkpoints=("a", "b"),
    shard_positions=64,
    chunk_positions=8,
    mean_positions=6,
    probe_sequences=3,
)
URL = "memory://stream/cache"


def bound(blocks: int) -> int:
    """Bytes for so many blocks, each below one block of the disk."""
    return OWN_BYTES + blocks * DISK_BLOCK_BYTES


def disk_bytes(folder: Path) -> int:
    """What the files of a copy take, as the disk counts; no file comes or goes meanwhile."""
    total = 0
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.rglob("*"):
            if path.is_file():
                total += -(-path.stat().st_size // DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES
    return total


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The cache in a folder; the same is at URL."""
    folder = tmp_path_factory.mktemp("here") / "cache"
    write_synthetic_cache(LocalStore(folder), MADE)
    write_synthetic_cache(RemoteStore(URL), MADE)
    return open_cache(str(folder))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The key of every range that the store is asked for."""
    keys: list[str] = []
    read_range = RemoteStore.read_range

    def counting(self: RemoteStore, key: str, start: int, size: int) -> bytes:
        keys.append(key)
        return read_range(self, key, start, size)

    monkeypatch.setattr(RemoteStore, "read_range", counting)
    return keys


def far(folder: Path, blocks: int) -> Cache:
    """Open the cache at URL with a copy, and with memory for one chunk, so that every read goes to the copy."""
    return open_cache(URL, memory_bytes=1, local_copy=(folder, bound(blocks)))


def cache_folder(cache: Cache, group: str) -> Path:
    """Where the copy has a group's blocks."""
    copy = cache._arrays["a"]["records"].store.copy  # type: ignore[attr-defined]
    return copy.group_folder(group)


def assert_same(one: Targets, other: Targets) -> None:
    for name, value in vars(one).items():
        assert np.array_equal(value, vars(other)[name]), name


def read_epochs(cache: Cache, here: Cache, name: str, epochs: int, check: Callable[[], None]) -> None:
    """Read every chunk of a checkpoint once an epoch, in another order each time."""
    chunk, end = MADE.chunk_positions, here.corpus.n_positions
    for epoch in range(epochs):
        for number in np.random.default_rng(epoch).permutation(-(-end // chunk)):
            span = [(int(number) * chunk, min(end, (int(number) + 1) * chunk))]
            assert_same(cache.read_spans(name, span), here.read_spans(name, span))
            check()


def test_a_bound_of_half_a_checkpoint_holds_and_saves_half_of_the_reads(
    here: Cache, tmp_path: Path, asked: list[str]
) -> None:
    chunks, shards = -(-here.corpus.n_positions // 8), -(-here.corpus.n_positions // 64)
    blocks = 4 + shards + chunks // 2  # the corpus's offsets, the shards' indexes, half of the chunks
    cache, limit = far(tmp_path, blocks), bound(blocks)

    def check() -> None:
        assert disk_bytes(tmp_path) <= limit

    read_epochs(cache, here, "a", 1, check)
    assert asked.count("checkpoints/a/records/c/0/0") == 8
    kept = len([path for path in cache_folder(cache, "checkpoints/a").iterdir() if path.name != "used"]) - shards
    assert kept >= chunks // 2
    asked.clear()
    read_epochs(cache, here, "a", 4, check)
    assert len(asked) == 4 * (chunks - kept)


def test_with_room_for_all_each_chunk_is_asked_for_once_by_all_who_ever_read(
    here: Cache, tmp_path: Path, asked: list[str]
) -> None:
    read_epochs(far(tmp_path, 1000), here, "a", 2, lambda: None)
    everything = len(asked)
    cache = far(tmp_path, 1000)
    read_epochs(cache, here, "a", 2, lambda: None)
    read_epochs(pickle.loads(pickle.dumps(cache)), here, "a", 1, lambda: None)
    assert cache.corpus.sequence(5)[0].tolist() == here.corpus.sequence(5)[0].tolist()
    assert len([key for key in asked[everything:] if "records" in key]) == 0
    shared = open_cache(URL, memory_bytes=1)
    read_epochs(shared, here, "a", 1, lambda: None)
    assert len(asked) > everything + 50


def test_what_was_used_least_recently_makes_room(
    here: Cache, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_copy, "STAMP_SECONDS", 0.0)
    write_synthetic_cache(RemoteStore("memory://stream/other"), replace(MADE, checkpoints=("c",), vocabulary=600))
    chunks = -(-here.corpus.n_positions // 8)
    cache = far(tmp_path, 2 * chunks + 60)

    def read_corpus() -> None:
        for row in range(len(here.corpus)):
            cache.corpus.sequence(row)

    for name in "aba":
        read_epochs(cache, here, name, 1, lambda: None)
        read_corpus()
        time.sleep(0.02)
    other = open_cache("memory://stream/other", memory_bytes=1, local_copy=(tmp_path, bound(2 * chunks + 60)))
    for number in range(chunks - 1):
        other.read_spans("c", [(8 * number, 8 * number + 8)])
    asked.clear()
    read_epochs(cache, here, "a", 1, lambda: None)
    read_corpus()
    assert asked == []
    read_epochs(cache, here, "b", 1, lambda: None)
    assert len(asked) >= chunks // 4


def test_processes_that_share_a_copy_and_are_killed_never_pass_its_bound_nor_read_half_a_block(
    here: Cache, tmp_path: Path
) -> None:
    rng, limit, killed = random.Random(3), bound(40), 0
    for _ in range(6):
        readers = [_fork_reader(tmp_path, here, seed) for seed in range(3)]
        ends = time.monotonic() + rng.uniform(0.05, 0.5)
        while time.monotonic() < ends:
            assert disk_bytes(tmp_path) <= limit
        for reader in readers[:2]:
            os.kill(reader, signal.SIGKILL)
        statuses = [os.waitpid(reader, 0)[1] for reader in readers]
        assert disk_bytes(tmp_path) <= limit
        assert all(os.WIFSIGNALED(status) or status == 0 for status in statuses)
        killed += sum(os.WIFSIGNALED(status) for status in statuses)
    assert killed >= 6
    copy = far(tmp_path, 40)
    assert not list(tmp_path.glob("*/*.part"))
    assert int((tmp_path / "lock").read_text()) == sum(
        -(-path.stat().st_size // DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES for path in tmp_path.glob("*/*")
    )
    read_epochs(copy, here, "b", 1, lambda: None)


def _fork_reader(folder: Path, here: Cache, seed: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        cache = far(folder, 40)
        rng, offsets = random.Random(seed), here.corpus.position_offsets
        for _ in range(150):
            rows, name = rng.sample(range(len(here.corpus)), 3), rng.choice("ab")
            want = here.read_spans(name, [(int(offsets[row]), int(offsets[row + 1])) for row in rows])
            assert_same(cache.read(name, rows), want)
        status = 0
    except BaseException:
        traceback.print_exc()  # `_exit` would end the process without a word
    finally:
        os._exit(status)


def test_damaged_blocks_are_fetched_again(here: Cache, tmp_path: Path, asked: list[str]) -> None:
    read_epochs(far(tmp_path, 1000), here, "a", 1, lambda: None)
    blocks = [path for path in tmp_path.glob("*/*") if path.name != "used"]
    intact = {path: path.read_bytes() for path in blocks}
    for number, path in enumerate(blocks):
        data = intact[path]
        path.write_bytes((b"", data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:], bytes(len(data)))[number % 5])
    read_epochs(far(tmp_path, 1000), here, "a", 1, lambda: None)
    assert {path: path.read_bytes() for path in blocks} == intact


def test_what_is_damaged_in_the_store_is_named_there_and_never_kept(here: Cache, tmp_path: Path) -> None:
    store, key = RemoteStore("memory://stream/damaged"), "checkpoints/a/records/c/0/1"
    write_synthetic_cache(store, MADE)
    intact = store.read(key)
    others = [bytes([intact[0] ^ 1]) + intact[1:], store.read("checkpoints/b/records/c/0/1")[: len(intact)]]
    for folder, other in zip((tmp_path / "flipped", tmp_path / "exchanged"), others, strict=True):
        store.fs.pipe_file(store.path(key), other.ljust(len(intact), b"\0"))
        cache = open_cache(store.url, local_copy=(folder, bound(1000)))
        with pytest.raises(CacheDamagedError, match=f"{store.url}/{key} is damaged"):
            cache.read_spans("a", [(64, 72)])
        kept = [path.read_bytes() for path in folder.glob("*/*") if path.name != "used"]
        assert kept and all(crc32c(data[:-4]) == int.from_bytes(data[-4:], "little") for data in kept)
        store.fs.pipe_file(store.path(key), intact)
        again = open_cache(store.url, local_copy=(folder, bound(1000)))
        assert_same(again.read_spans("a", [(64, 72)]), here.read_spans("a", [(64, 72)]))


@contextmanager
def no_large_file() -> Iterator[None]:
    """Let this process write no file above 64 bytes, as a full disk would. In a block alone: pytest writes its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_copy_and_not_the_reading(here: Cache, tmp_path: Path) -> None:
    with no_large_file(), pytest.warns(UserWarning, match="no more is kept in") as warned:
        cache = far(tmp_path, 1000)
        read_epochs(cache, here, "a", 1, lambda: None)
    assert len(warned) == 1
    assert not list(tmp_path.glob("*/*.part"))
    assert int((tmp_path / "lock").read_text()) == 0


def test_a_copy_smaller_than_a_chunk_or_of_no_folder_is_no_copy(here: Cache, tmp_path: Path) -> None:
    read_epochs(open_cache(URL, local_copy=(tmp_path, 1)), here, "a", 1, lambda: None)
    assert not [path for path in tmp_path.glob("*/*") if path.name != "used"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheWriteError, match=r"cache\.local_copy_bytes to 0"):
        LocalCopy(tmp_path / "file", 1 << 20, "x")
    assert len(open_cache(here.url, local_copy=(tmp_path / "unused", 1 << 20)).corpus)
    assert not (tmp_path / "unused").exists()


def test_a_batchs_chunks_are_read_at_once(here: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    read_range, at_work, most = RemoteStore.read_range, [0], [0]
    lock = threading.Lock()

    def slow(self: RemoteStore, key: str, start: int, size: int) -> bytes:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.02)
        with lock:
            at_work[0] -= 1
        return read_range(self, key, start, size)

    cache, rows = open_cache(URL), [3, 50, 80, 110]
    monkeypatch.setattr(RemoteStore, "read_range", slow)
    cache.prefetch("a", rows)
    assert most[0] >= 4
    asked = most[0]
    monkeypatch.setattr(RemoteStore, "read_range", lambda *_: pytest.fail("it was to be in memory"))
    assert_same(cache.read("a", rows), here.read("a", rows))
    assert [cache.corpus.sequence(row)[0].tolist() for row in rows] == [
        here.corpus.sequence(row)[0].tolist() for row in rows
    ]
    assert asked <= 16


@pytest.mark.s3
def test_students_trained_from_s3_through_a_small_copy_have_the_bytes_of_those_trained_from_a_folder(
    toy: Callable[..., tuple[Experiment, Cache, object]], bucket: str, built_toy: Path, asked: list[str], tmp_path: Path
) -> None:
    copy_cache(
        plan_copy(LocalStore(built_toy / "run" / "cache"), ()),
        RemoteStore(f"{bucket}/toy"),
        jobs=4,
        card=True,
        done=lambda count: None,
    )
    settings = ("distill.methods=['cd+aw']", "distill.window_chunks=2")
    experiment, cache, prepared = toy(*settings)
    expected = (distill(experiment, "cd+aw", 0, cache, prepared) / "last" / "model.safetensors").read_bytes()  # type: ignore[arg-type]
    limit = bound(12)
    for workers in (0, 2):
        there = (f"cache.path='{bucket}/toy'", f"cache.local_copy_bytes={limit}")
        experiment, _, prepared = toy(*settings, *there, f"distill.dataloader_num_workers={workers}")
        far = open_cache(experiment.cache_url, memory_bytes=1, local_copy=experiment.local_copy)
        folder = distill(experiment, "cd+aw", 0, far, prepared)  # type: ignore[arg-type]
        assert (folder / "last" / "model.safetensors").read_bytes() == expected
        assert 0 < disk_bytes(experiment.output_dir / "cache-copy") <= limit
    assert asked
    finished = load_toy(
        built_toy / "experiment.toml",
        f"run.output_dir='{experiment.output_dir}'",
        *settings,
        f"cache.path='{bucket}/toy'",
        "cache.local_copy_bytes=0",
        "distill.dataloader_num_workers=2",
    )
    assert finished.local_copy is None
    assert distill(finished, "cd+aw", 0, open_cache(finished.cache_url), prepared) == folder  # type: ignore[arg-type]
