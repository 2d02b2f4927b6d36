import json

import numpy as np
import pytest
import zarr
import zarr.storage
from pydantic import ValidationError

from cache_builder.errors import CacheDamagedError, CacheMismatchError
from cache_builder.format.differences import compare
from cache_builder.format.manifest import (
    Manifest,
    check_name,
    seal,
    unseal,
)
from cache_builder.format.records import RecordLayout, decode_records, dequantise, encode_records, quantise
from cache_builder.format.zarr_shards import ArrayReader, ArraySpec, array_metadata, encode_shard, parse_array_metadata
from cache_builder.storage.local import LocalStore
from cache_builder.targets.sparse import Targets

VOCABULARY = 1 << 24


def manifest(**changes: object) -> Manifest:
    values = {
        "format": "footsteps-cache",
        "version": 1,
        "tokenizer": {"fingerprint": "t", "size": 300},
        "chat_template_fingerprint": "c",
        "corpus": {"fingerprint": "x", "sequences": 2, "tokens": 9, "positions": 5},
        "held_out": None,
        "targets": {"top_k": 4, "top_p": 1.0, "tail_samples": 2, "logp_steps_per_nat": 256, "seed": 0},
        "probe": {"sequences": 2, "top_k": 8},
        "layout": {"shard_positions": 64, "chunk_positions": 16},
    }
    return Manifest.model_validate({**values, **changes})


def random_targets(positions: int, k: int, s: int, seed: int = 0) -> Targets:
    """Targets whose support and tail sum to one, with unused slots and empty tails among them."""
    rng = np.random.default_rng(seed)
    logits = -np.sort(rng.exponential(3, (positions, k + 1)), axis=1)
    used = rng.integers(1, k + 1, positions)
    unused = np.arange(k) >= used[:, None]
    logits[:, :k][unused] = -np.inf
    logits[rng.random(positions) < 0.3, k] = -np.inf
    logp = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    ids = rng.integers(0, VOCABULARY, (positions, k))
    ids[unused] = np.broadcast_to(ids[:, :1], ids.shape)[unused]
    samples = rng.integers(0, VOCABULARY, (positions, s))
    no_tail = np.isneginf(logp[:, k])
    samples[no_tail] = ids[no_tail, :1]
    gold, entropy = rng.normal(-3, 1, (2, positions)).astype(np.float32)
    return Targets(ids, logp[:, :k], samples, logp[:, k], gold, entropy)


def test_a_record_gives_back_its_target_to_half_a_step() -> None:
    layout = RecordLayout(top_k=5, tail_samples=3, steps_per_nat=256)
    targets = random_targets(400, 5, 3)
    planes = encode_records(layout, targets)
    assert planes.shape == (layout.n_planes, 400)
    decoded = decode_records(layout, planes, VOCABULARY)
    for exact in ("ids", "samples", "gold", "entropy"):
        np.testing.assert_array_equal(getattr(decoded, exact), getattr(targets, exact))
    assert (np.isneginf(decoded.logp) == np.isneginf(targets.logp)).all()
    used = np.isfinite(targets.logp)
    # Half a step from rounding, and no more than that again from renormalising.
    assert np.abs(decoded.logp[used] - targets.logp[used]).max() <= 1 / 256
    mass = np.exp(decoded.logp.astype(np.float64)).sum(1) + np.exp(decoded.log_tail.astype(np.float64))
    np.testing.assert_allclose(mass, 1, atol=1e-6)


def test_rounding_costs_less_than_an_eighth_of_the_step_squared_in_kl() -> None:
    rng = np.random.default_rng(1)
    logp = np.log(rng.dirichlet(np.ones(16), 2000)).astype(np.float32)
    for steps in (16, 256, 2048):
        rounded = dequantise(quantise(logp, steps), steps).astype(np.float64)
        rounded -= np.log(np.exp(rounded).sum(1, keepdims=True))
        kl = (np.exp(logp.astype(np.float64)) * (logp - rounded)).sum(1)
        assert kl.mean() <= 1 / (8 * steps**2)


def test_extreme_log_probabilities_are_clipped_and_never_become_unused() -> None:
    code = quantise(np.array([0.0, -1e9, -np.inf, 1e-6], np.float32), 256)
    assert code.tolist() == [0, 65534, 65535, 0]


def test_an_id_outside_the_vocabulary_is_damage() -> None:
    layout = RecordLayout(2, 1, 256)
    planes = encode_records(layout, random_targets(3, 2, 1))
    with pytest.raises(CacheDamagedError, match="outside the vocabulary of 300"):
        decode_records(layout, planes, 300)


def test_targets_without_samples_or_positions_keep_their_shapes() -> None:
    layout = RecordLayout(3, 0, 256)
    decoded = decode_records(layout, encode_records(layout, random_targets(7, 3, 0)), VOCABULARY)
    assert decoded.samples.shape == (7, 0)
    assert decode_records(layout, np.empty((layout.n_planes, 0), np.uint8), VOCABULARY).ids.shape == (0, 3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int64", "float32", "float64"])
def test_plain_zarr_reads_what_is_written_and_the_reader_what_zarr_writes(dtype: str, tmp_path) -> None:
    values = (np.random.default_rng(0).random((3, 101)) * 200).astype(dtype)
    spec = ArraySpec(values.shape, dtype, shard=32, chunk=8)
    store = LocalStore(tmp_path)
    crcs = []
    for shard in range(spec.n_shards):
        start, end = spec.span(shard)
        encoded = encode_shard(spec, values[:, start:end])
        crcs.append(encoded.chunk_crcs)
        store.commit(f"a/{spec.shard_key(shard)}", encoded.data)
    store.commit("a/zarr.json", array_metadata(spec))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], values)
    np.testing.assert_array_equal(ArrayReader(store, "a", spec, crcs.__getitem__).all(), values)

    zarr.open_array(tmp_path / "a", mode="r+")[:] = values
    np.testing.assert_array_equal(ArrayReader(store, "a", spec, crcs.__getitem__).all(), values)


def test_an_array_description_is_read_back_and_every_changed_byte_is_noticed() -> None:
    spec = ArraySpec((7, 100), "uint8", shard=64, chunk=16, level=1)
    data = array_metadata(spec, {"name": "step-1"})
    assert parse_array_metadata(data, "here") == (spec, {"name": "step-1"})
    before_attributes = data.index(b'"attributes"')
    for at in range(before_attributes):
        changed = bytearray(data)
        changed[at] ^= 1
        try:
            assert parse_array_metadata(bytes(changed), "here")[0] != spec
        except CacheDamagedError as error:
            assert "here" in str(error)


def test_a_sealed_group_is_read_back_and_every_flipped_bit_is_damage() -> None:
    data = seal(manifest())
    assert unseal(Manifest, data, "here") == manifest()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        # A flip in the version's digit may read as a newer version: refused as well, by another name.
        with pytest.raises((CacheDamagedError, CacheMismatchError), match="here"):
            unseal(Manifest, bytes(changed), "here")


def test_a_newer_version_is_refused_by_its_number_before_anything_else_is_read() -> None:
    document = json.loads(seal(manifest()))
    document["attributes"]["footsteps"] = {"format": "footsteps-cache", "version": 3, "unheard_of": True}
    with pytest.raises(CacheMismatchError, match="format version 3, this program reads versions up to 2"):
        unseal(Manifest, json.dumps(document).encode(), "here")


def test_only_an_imported_caches_manifest_has_version_2_and_says_so() -> None:
    source = {
        "format": "axolotl",
        "source_sha256": "s",
        "settings": {"temperature": 1.0},
        "tail": "none",
        "left_out": 0,
    }
    imported = manifest(version=2, imported=source)
    assert unseal(Manifest, seal(imported), "here") == imported
    assert b"imported" not in seal(manifest())
    for changes in ({"version": 2}, {"imported": source}):
        with pytest.raises(ValidationError, match="version 2, and only it"):
            manifest(**changes)
    with pytest.raises(CacheMismatchError, match=r"imported\.source_sha256: it has 's', now None"):
        compare(imported, manifest(), "cache c")


def test_a_difference_is_named_with_both_values() -> None:
    other = manifest(tokenizer={"fingerprint": "u", "size": 300})
    with pytest.raises(CacheMismatchError, match=r"tokenizer\.fingerprint: it has 't', now 'u'") as error:
        compare(manifest(), other, "cache c")
    assert "size" not in str(error.value)


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "-x", "ü", "a" * 200])
def test_a_checkpoint_name_that_is_no_folder_name_everywhere_is_refused(name: str) -> None:
    with pytest.raises(CacheMismatchError, match="checkpoint name"):
        check_name(name)
