"""Properties of the format over any sizes: what is encoded decodes to itself, and no name leaves its folder."""

import json
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_builder.errors import CacheDamagedError, CacheMismatchError
from cache_builder.format.indented import indented
from cache_builder.format.manifest import (
    CorpusGroup,
    LedgerEntry,
    check_name,
    checkpoint_key,
    entry_of,
    group_key,
    seal,
    unseal,
)
from cache_builder.format.records import RecordLayout, decode_records, encode_records
from cache_builder.format.zarr_shards import (
    DTYPES,
    ArrayReader,
    ArraySpec,
    array_metadata,
    encode_shard,
    parse_array_metadata,
)
from cache_builder.storage.local import LocalStore
from tests.cache_builder.format.test_manifest import VOCABULARY, random_targets

SIZES = st.integers(0, 40)


EDGES = st.lists(st.integers(100, VOCABULARY - 1), max_size=9, unique=True).map(
    lambda inner: (0, *sorted(inner), VOCABULARY)
)


@given(SIZES, st.integers(1, 9), st.integers(0, 5), st.integers(1, 4096), st.integers(0, 99), st.just(()) | EDGES)
def test_any_records_decode_to_what_was_encoded(
    m: int, k: int, s: int, steps: int, seed: int, edges: tuple[int, ...]
) -> None:
    layout, targets = RecordLayout(k, s, steps, edges, 4), random_targets(m, k, s, seed, edges)
    planes = encode_records(layout, targets)
    blocks = len(edges) - 1 + (s > 0) if edges else 0
    assert planes.shape == (3 * k + 2 * k + 3 * s + blocks + 12, m) and planes.dtype == np.uint8
    decoded = decode_records(layout, planes, VOCABULARY)
    for exact in ("ids", "samples", "gold", "entropy"):
        np.testing.assert_array_equal(getattr(decoded, exact), getattr(targets, exact))
    for logs in ("logp", "log_blocks"):
        np.testing.assert_array_equal(np.isneginf(getattr(decoded, logs)), np.isneginf(getattr(targets, logs)))
    mass = np.exp(decoded.logp.astype(np.float64)).sum(1) + np.exp(decoded.log_tail.astype(np.float64))
    np.testing.assert_allclose(mass, 1, atol=1e-5)


@settings(max_examples=30)  # each writes files and waits for the disk
@given(
    st.sampled_from(sorted(DTYPES)), st.integers(1, 3), SIZES, st.integers(1, 7), st.integers(1, 4), st.integers(0, 99)
)
def test_any_array_is_read_back_whatever_its_chunks_and_shards(
    dtype: str, planes: int, entries: int, chunk: int, chunks_per_shard: int, seed: int
) -> None:
    spec = ArraySpec((planes, entries), dtype, shard=chunk * chunks_per_shard, chunk=chunk)
    values = np.random.default_rng(seed).integers(0, 256, (planes, entries * spec.numpy_dtype.itemsize), np.uint8)
    values = values.view(spec.numpy_dtype)
    with tempfile.TemporaryDirectory() as folder:
        store, crcs = LocalStore(Path(folder)), []
        for shard in range(spec.n_shards):
            start, end = spec.span(shard)
            encoded = encode_shard(spec, values[:, start:end])
            crcs.append(encoded.chunk_crcs)
            store.commit(f"a/{spec.shard_key(shard)}", encoded.data)
        read = ArrayReader(store, "a", spec, crcs.__getitem__).all()
    assert read.tobytes() == values.tobytes() and read.shape == values.shape
    assert parse_array_metadata(array_metadata(spec), "here") == (spec, {})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    ),
    st.booleans(),
)
def test_json_is_written_as_python_s_own_encoder_writes_it(value: object, ensure_ascii: bool) -> None:
    value = {"value": value}
    assert indented(value, ensure_ascii=ensure_ascii) == json.dumps(value, ensure_ascii=ensure_ascii, indent=1)


@given(st.binary(max_size=50), st.none() | st.lists(st.integers(0, 2**32 - 1), max_size=5), st.integers(0, 10**6))
def test_any_ledger_is_read_back_and_no_other_bytes_pass_for_it(data: bytes, crcs: list[int] | None, flip: int) -> None:
    entry = entry_of(data, crcs)
    assert (entry.bytes, entry.chunk_crc32c) == (len(data), crcs)
    body = CorpusGroup(files={"tokens/c/0": entry})
    sealed = seal(body)
    assert unseal(CorpusGroup, sealed, "here") == body
    assert unseal(LedgerEntry, seal(entry), "here") == entry
    changed = bytearray(sealed)
    changed[flip % len(sealed)] ^= 1 << flip % 7
    with pytest.raises(CacheDamagedError, match="here"):
        unseal(CorpusGroup, bytes(changed), "here")
    assert json.loads(sealed)["node_type"] == "group"


@given(st.text(max_size=20) | st.text("aZ0_./\\-:~", max_size=130))
def test_a_name_that_is_accepted_stays_in_its_folder_on_every_system(name: str) -> None:
    try:
        check_name(name)
    except CacheMismatchError:
        accepted = False
    else:
        accepted = True
        assert PurePosixPath(checkpoint_key(name)).parts == ("checkpoints", name)
        assert PureWindowsPath(checkpoint_key(name)).parts == ("checkpoints", name)
        assert group_key(checkpoint_key(name)) == f"checkpoints/{name}/zarr.json"
        assert name.isascii() and name not in (".", "..")
    allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
    assert accepted == (0 < len(name) < 128 and set(name) <= set(allowed) and name[0] not in ".-")


KEYS = st.lists(st.sampled_from(["a", "b", "zarr.json", "c", "0"]), min_size=1, max_size=4).map("/".join)


@settings(max_examples=30)  # each writes files and waits for the disk
@given(st.dictionaries(KEYS, st.binary(max_size=20), max_size=6))
def test_a_store_lists_and_gives_back_exactly_what_was_committed(files: dict[str, bytes]) -> None:
    files = {key: data for key, data in files.items() if not any(other.startswith(f"{key}/") for other in files)}
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        for key, data in files.items():
            store.commit(key, data)
        assert store.sizes("") == {key: len(data) for key, data in files.items()}
        for key, data in files.items():
            assert store.exists(key) and store.read(key) == data
            assert store.read_range(key, 0, len(data)) == data == store.read_tail(key, len(data))
            with pytest.raises(CacheDamagedError, match="ends before byte"):
                store.read_range(key, 0, len(data) + 1)
            store.remove(key)
        assert store.sizes("") == {}
