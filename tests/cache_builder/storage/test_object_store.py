"""The same cache on a real S3 server, moto's, started here; and on fsspec's memory, for what needs no server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.errors import CacheBusyError, CacheDamagedError, CacheIncompleteError, ConfigError, MissingError
from cache_builder.storage import leases
from cache_builder.storage.holders import machine
from cache_builder.storage.leases import LEASE_SECONDS, Leases, is_over, stamped
from cache_builder.storage.local import LocalStore
from cache_builder.storage.object_store import RemoteStore
from cache_builder.storage.open import open_store
from tests.support.caches import Teaching, files_of
from tests.support.paths import ROOT
from tools.make_fixture_cache import FIXTURE
from tools.synthetic_cache import write_synthetic_cache

KILLED_AFTER = """
import os, signal, sys
from pathlib import Path
from cache_builder.storage.object_store import RemoteStore
from tests.support.caches import Teaching
commit, left = RemoteStore.commit, int(sys.argv[3])
def counting(self, key, data):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self, key, data)
RemoteStore.commit = counting
Teaching(Path(sys.argv[1])).build(sys.argv[2])
"""


def remote_files(store: RemoteStore) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.sizes("")}


@pytest.mark.s3
def test_a_cache_on_s3_has_the_bytes_of_a_local_one_and_is_read_alike(
    teaching: Teaching, bucket: str, tmp_path: Path
) -> None:
    url = f"{bucket}/run/cache"
    assert teaching.build(tmp_path / "cache")
    assert not teaching.build(url, part=(1, 2))
    with pytest.raises(CacheIncompleteError, match="step-1"):
        open_cache(url).losses("step-1")
    assert teaching.build(url, part=(0, 2))
    assert remote_files(RemoteStore(url)) == files_of(tmp_path / "cache")
    local, remote = open_cache(str(tmp_path / "cache")), open_cache(url)
    for name in remote.checkpoints:
        assert (remote.read(name, [5, 2]).ids == local.read(name, [5, 2]).ids).all()
        assert (remote.losses(name) == local.losses(name)).all()
    assert remote.corpus.sample_ids[3] == "color-3"
    assert teaching.build(url)


@pytest.mark.s3
@pytest.mark.slow
def test_a_build_killed_between_two_objects_continues_to_the_same_bytes(
    teaching: Teaching, bucket: str, tmp_path: Path
) -> None:
    url = f"{bucket}/killed"
    assert teaching.build(tmp_path / "cache")
    builder = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER, teaching.folder, url, "24"],
        cwd=ROOT,
        capture_output=True,
    )
    assert builder.returncode == -signal.SIGKILL, builder.stderr
    assert open_cache(url).checkpoints == ()
    assert ".locks/part-0-of-1.json" in {path.split("killed/")[1] for path in RemoteStore(url).fs.find(url)}
    assert teaching.build(url)  # the dead builder ran on this machine, so its lease is over
    assert remote_files(RemoteStore(url)) == files_of(tmp_path / "cache")


@pytest.mark.s3
def test_damaged_objects_are_named_and_never_read(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/damaged"
    store = RemoteStore(url)
    write_synthetic_cache(store, FIXTURE)
    assert verify_cache(store).damaged == {}
    key = "checkpoints/step-1/records/c/0/0"
    intact = store.read(key)
    flipped = bytes([intact[0] ^ 1]) + intact[1:]
    for data in (flipped, intact[:-1], b""):
        store.commit(key, data)
        assert set(verify_cache(store).damaged) == {key}
        with pytest.raises(CacheDamagedError, match=key):
            open_cache(url).read("step-1", [0])
    store.remove_tree(key)
    assert verify_cache(store).damaged == {key: "the file is missing"}
    with pytest.raises(CacheDamagedError, match=key):
        open_cache(url)


@pytest.mark.parametrize("scheme", [pytest.param("s3", marks=pytest.mark.s3), "memory"])
def test_two_builders_never_hold_the_same_part(scheme: str, request: pytest.FixtureRequest) -> None:
    url = f"{request.getfixturevalue('bucket')}/held" if scheme == "s3" else "memory://held"
    with RemoteStore(url).lock_part((0, 2)):
        with pytest.raises(CacheBusyError, match=f"process {os.getpid()}, part 0/2"):
            RemoteStore(url).lock_part((0, 2)).__enter__()
        with pytest.raises(CacheBusyError, match="same n"):
            RemoteStore(url).lock_part((0, 3)).__enter__()
        with RemoteStore(url).lock_part((1, 2)), RemoteStore(url).exclusive():
            pass
    assert Leases(RemoteStore(url)).all() == {}


def test_a_lease_ends_with_its_time_or_with_its_process_on_the_same_machine() -> None:
    lease = {"host": machine(), "process": os.getpid(), "renewed": time.time()}
    assert not is_over(lease)
    assert is_over({**lease, "renewed": time.time() - LEASE_SECONDS - 1})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_over({**lease, "process": ended.pid})
    assert not is_over({**lease, "process": ended.pid, "host": "elsewhere"})


def test_a_dead_builders_lease_is_taken_over() -> None:
    url = "memory://dead"
    store = RemoteStore(url)
    program = "import os; print(os.getpid())"
    process = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    lease = {"holder": "x", "host": machine(), "process": process}
    assert store.create(".locks/part-0-of-1.json", stamped(lease))
    with store.lock_part((0, 1)):
        pass


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"holder": "x"}', b"[" * 200_000])
def test_an_object_that_is_no_lease_holds_nothing_up(garbage: bytes) -> None:
    store = RemoteStore("memory://garbage")
    store.create(".locks/part-0-of-1.json", garbage)
    store.create(".locks/part-0-of-3.json", garbage)
    with store.lock_part((0, 1)):
        assert set(Leases(store).all()) == {"part-0-of-1.json", "part-0-of-3.json"}
    store.remove(".locks/part-0-of-3.json")


def test_the_lease_of_a_dead_builder_whose_clock_was_fast_ends_by_our_own_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
    store = RemoteStore("memory://fast")
    ahead = {"holder": "x", "host": "elsewhere", "process": 1, "renewed": time.time() + 1e6}
    assert store.create(".locks/part-0-of-1.json", json.dumps(ahead).encode())
    begun = time.monotonic()
    with store.lock_part((0, 1)):
        assert 1.0 < time.monotonic() - begun < 20


def test_a_place_without_a_cache_or_without_its_package_is_named() -> None:
    with pytest.raises(MissingError, match="no cache at memory://nothing"):
        open_cache("memory://nothing")
    with pytest.raises(ConfigError, match="cache nosuch://x: Protocol not known: nosuch"):
        open_cache("nosuch://x")


def test_a_local_cache_may_be_given_as_a_file_url(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/cache")
    assert isinstance(store, LocalStore)
    write_synthetic_cache(store, FIXTURE)
    assert open_cache(f"file://{tmp_path}/cache").checkpoints == FIXTURE.checkpoints
    shutil.rmtree(tmp_path / "cache")
