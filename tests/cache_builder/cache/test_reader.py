import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.errors import (
    CacheDamagedError,
    CacheIncompleteError,
    CacheMismatchError,
    MissingError,
    UserError,
)
from cache_builder.format.zarr_shards import ArrayReader, ArraySpec, encode_shard
from cache_builder.storage.local import LocalStore
from tests.support.caches import files_of
from tests.support.paths import ROOT
from tools.make_fixture_cache import FIXTURE, FIXTURE_V3, FOLDER_V3
from tools.make_fixture_cache import FOLDER as FIXTURE_FOLDER
from tools.synthetic_cache import Synthetic, write_synthetic_cache

FIXTURE_FILES = sorted(
    path.relative_to(FIXTURE_FOLDER).as_posix() for path in FIXTURE_FOLDER.rglob("*") if path.is_file()
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the fixture that may be damaged."""
    return Path(shutil.copytree(FIXTURE_FOLDER, tmp_path / "cache"))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of many chunks."""
    folder = tmp_path_factory.mktemp("larger") / "cache"
    write_synthetic_cache(LocalStore(folder), Synthetic(300, top_k=4, shard_positions=2048, chunk_positions=256))
    return folder


def read_everything(cache: Cache) -> None:
    """Touch every array that the public interface offers."""
    assert len(cache.corpus.sequences(range(len(cache.corpus)))) == len(list(cache.corpus.sample_ids))
    assert cache.probe_rows.size
    assert cache.probe_ids.size
    for name in cache.checkpoints:
        assert len(cache.read(name, range(len(cache.corpus)))) == cache.corpus.n_positions
        assert cache.losses(name).size
        assert cache.probe_logp(name).size
    if len(cache.checkpoints) < len(FIXTURE.checkpoints):
        cache.read(FIXTURE.checkpoints[-1], [0])
        cache.read(FIXTURE.checkpoints[0], [0])


def test_a_cache_of_version_1_kept_in_git_still_opens_and_says_what_it_said() -> None:
    cache = open_cache(str(FIXTURE_FOLDER))
    corpus = FIXTURE.corpus()
    assert cache.checkpoints == FIXTURE.checkpoints
    np.testing.assert_array_equal(cache.corpus.position_offsets, corpus.position_offsets)
    for row in range(FIXTURE.sequences):
        tokens, completion = cache.corpus.sequence(row)
        span = slice(int(corpus.token_offsets[row]), int(corpus.token_offsets[row + 1]))
        np.testing.assert_array_equal(tokens, corpus.tokens[span])
        np.testing.assert_array_equal(completion, corpus.completion[span])
        assert completion.sum() == cache.corpus.sequence_positions(row)
        assert cache.corpus.sample_ids[row] == f"row-{row}"
    for number, name in enumerate(FIXTURE.checkpoints):
        expected = FIXTURE.targets(number, 0, cache.corpus.n_positions)
        targets = cache.read(name, range(FIXTURE.sequences))
        np.testing.assert_array_equal(targets.ids, expected.ids)
        np.testing.assert_array_equal(targets.samples, expected.samples)
        np.testing.assert_array_equal(targets.gold, expected.gold)
        np.testing.assert_allclose(targets.logp, expected.logp, atol=1 / 256)
        bounds = corpus.position_offsets
        losses = [-expected.gold[a:b].astype(np.float64).sum() for a, b in pairwise(bounds)]
        np.testing.assert_allclose(cache.losses(name), losses, rtol=1e-12)
        assert cache.held_out(name) == number + 1
        np.testing.assert_allclose(cache.probe_logp(name), expected.logp[: len(cache.probe_ids)], atol=1 / 256)
    np.testing.assert_array_equal(cache.probe_rows, [0, 1, 2])


def test_a_cache_of_version_3_kept_in_git_still_opens_and_says_what_it_said() -> None:
    cache = open_cache(str(FOLDER_V3))
    assert cache.manifest.version == 3 and not verify_cache(LocalStore(FOLDER_V3)).damaged
    for number, name in enumerate(FIXTURE_V3.checkpoints):
        expected = FIXTURE_V3.targets(number, 0, cache.corpus.n_positions)
        targets = cache.read(name, range(FIXTURE_V3.sequences))
        assert targets.edges == expected.edges and len(targets.edges) == 7
        np.testing.assert_allclose(targets.log_blocks, expected.log_blocks, atol=1 / 4)
        np.testing.assert_allclose(np.exp(targets.log_blocks).sum(1), np.exp(targets.log_tail), rtol=1e-5)
        np.testing.assert_allclose(targets.log_collision, expected.log_collision, atol=1 / 32 + 1e-6)
        for field in ("ids", "samples", "gold"):
            np.testing.assert_array_equal(getattr(targets, field), getattr(expected, field))


def test_plain_zarr_opens_every_array_of_the_fixture() -> None:
    group = zarr.open_group(FIXTURE_FOLDER, mode="r")
    corpus = FIXTURE.corpus()
    np.testing.assert_array_equal(group["corpus/tokens"][:], corpus.tokens[:])
    np.testing.assert_array_equal(group["corpus/position_offsets"][:], corpus.position_offsets)
    cache = open_cache(str(FIXTURE_FOLDER))
    for name in cache.checkpoints:
        np.testing.assert_array_equal(group[f"checkpoints/{name}/loss"][:], cache.losses(name))
        records = group[f"checkpoints/{name}/records"][:]
        gold = records[-12:].reshape(4, 3, -1)[:, 1].T.copy().view("<f4")[:, 0]
        np.testing.assert_array_equal(gold, cache.read(name, range(FIXTURE.sequences)).gold)
    arrays = [path.parent for path in FIXTURE_FOLDER.rglob("zarr.json") if b'"array"' in path.read_bytes()]
    assert len(arrays) == 16
    for folder in arrays:
        assert zarr.open_array(folder, mode="r")[:].size


def test_rows_in_any_order_give_the_same_targets_whatever_memory_holds(larger: Path) -> None:
    whole = open_cache(str(larger))
    everything = whole.read("step-1", range(300))
    offsets = whole.corpus.position_offsets
    rng = np.random.default_rng(0)
    for memory_bytes in (1, 100_000, 1 << 30):
        cache = open_cache(str(larger), memory_bytes=memory_bytes)
        for _ in range(20):
            rows = rng.permutation(300)[:7]
            targets = cache.read("step-1", rows)
            places = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])
            for field in ("ids", "logp", "samples", "log_tail", "gold", "entropy"):
                np.testing.assert_array_equal(getattr(targets, field), getattr(everything, field)[places])
            for row, (tokens, _) in zip(rows, cache.corpus.sequences(rows), strict=True):
                np.testing.assert_array_equal(tokens, whole.corpus.sequence(int(row))[0])


def test_memory_holds_no_more_chunks_than_it_may(larger: Path) -> None:
    cache = open_cache(str(larger), memory_bytes=100_000)
    cache.read("step-1", range(300))
    assert 0 < cache._memory.held_bytes <= 100_000


def test_chunks_of_one_window_are_read_once(larger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(str(larger))
    reads: list[str] = []
    read_range = LocalStore.read_range

    def counting(self: LocalStore, key: str, start: int, size: int) -> bytes:
        reads.append(key)
        return read_range(self, key, start, size)

    monkeypatch.setattr(LocalStore, "read_range", counting)
    for row in np.random.default_rng(0).permutation(300):
        cache.read("step-1", [row])
    n_chunks = -(-cache.corpus.n_positions // 256)
    n_shards = -(-cache.corpus.n_positions // 2048)
    assert len(reads) == n_chunks + n_shards  # a shard's index is read once, too


def test_a_cache_is_read_without_torch_or_the_trainer() -> None:
    program = (
        "import sys; from cache_builder.cache.reader import open_cache; cache = open_cache(sys.argv[1]);"
        "cache.read('step-1', [3, 1]); "
        "bad = {'torch', 'transformers', 'trainer'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program, FIXTURE_FOLDER], cwd=ROOT, check=True)


def test_an_open_cache_can_be_pickled() -> None:
    read = open_cache(str(FIXTURE_FOLDER))
    read.read("step-2", range(12))
    assert read._memory.held_bytes > 0
    cache = pickle.loads(pickle.dumps(read))
    assert cache._memory.held_bytes == 0  # chunks stay behind
    assert cache.read("step-2", [0]).ids.shape == (cache.corpus.sequence_positions(0), 4)


def test_another_tokenizer_is_refused_naming_both() -> None:
    cache = open_cache(str(FIXTURE_FOLDER))
    cache.check_tokenizer("made up", 100_000)
    with pytest.raises(CacheMismatchError, match=r"tokenizer made up… of 100,000 tokens, got other… of 100,000"):
        cache.check_tokenizer("other", 100_000)
    with pytest.raises(CacheMismatchError, match="of 99,999"):
        cache.check_tokenizer("made up", 99_999)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no cache at"):
        open_cache(str(tmp_path / "nothing"))
    shutil.copytree(FIXTURE_FOLDER, tmp_path / "run" / "cache")
    for opened in (open_cache, lambda run: verify_cache(LocalStore(Path(run)))):
        with pytest.raises(MissingError, match=r"no cache at .*run, a run's folder; its cache is .*run/cache"):
            opened(str(tmp_path / "run"))
    with pytest.raises(CacheIncompleteError, match=r"does not know checkpoint 'step-9'; complete are: step-1, step-2"):
        open_cache(str(FIXTURE_FOLDER)).losses("step-9")


def flip(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path, other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


def like(file: str) -> list[str]:
    """Other files that `file` could be exchanged for: first the other checkpoint's, then its siblings, then any."""
    twin = file.replace("step-1", "step-0").replace("step-2", "step-1").replace("step-0", "step-2")
    siblings = [other for other in FIXTURE_FILES if Path(other).parent == Path(file).parent and other != file]
    namesakes = [other for other in FIXTURE_FILES if Path(other).name == Path(file).name and other != file]
    return [*([twin] if twin != file else []), *siblings, *namesakes]


@pytest.mark.parametrize("damage", [flip, truncate, empty, delete, swap])
@pytest.mark.parametrize("file", FIXTURE_FILES)
def test_every_damaged_file_is_named_and_never_read(
    copy: Path, file: str, damage: Callable[[Path, Path], None]
) -> None:
    original = (FIXTURE_FOLDER / file).read_bytes()
    other = next(other for other in like(file) if (FIXTURE_FOLDER / other).read_bytes() != original)
    damage(copy / file, copy / other)
    named = [file, other] if damage is swap else [file]
    try:
        damaged = set(verify_cache(LocalStore(copy)).damaged)
    except UserError as error:
        damaged = {each for each in named if str(copy / each) in str(error)}
    assert damaged >= set(named)
    with pytest.raises((CacheDamagedError, CacheIncompleteError, MissingError)):
        read_everything(open_cache(str(copy)))


def test_an_intact_shard_of_the_same_size_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    spec = ArraySpec((5, 64), "uint8", shard=64, chunk=16)
    one, two = (encode_shard(spec, np.random.default_rng(i).integers(0, 256, (5, 64))) for i in range(2))
    assert len(one.data) == len(two.data)
    store = LocalStore(tmp_path)
    store.commit("a/c/0/0", two.data)
    with pytest.raises(CacheDamagedError, match="chunk 0 is not the one that was committed"):
        ArrayReader(store, "a", spec, lambda shard: one.chunk_crcs).chunk(0)


def test_every_byte_of_a_shard_is_guarded(copy: Path) -> None:
    shard = copy / "checkpoints/step-1/records/c/0/0"
    data = shard.read_bytes()
    for at in range(0, len(data), 7):
        shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CacheDamagedError, match="records/c/0/0 is damaged"):
            open_cache(str(copy)).read("step-1", range(FIXTURE.sequences))


def test_an_intact_cache_is_verified_whole() -> None:
    verdict = verify_cache(LocalStore(FIXTURE_FOLDER))
    assert (verdict.damaged, verdict.incomplete, verdict.foreign) == ({}, [], [])
    assert verdict.files == len(FIXTURE_FILES)
    assert verdict.bytes == sum(len(data) for data in files_of(FIXTURE_FOLDER).values())
