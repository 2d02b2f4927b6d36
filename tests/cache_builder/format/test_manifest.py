import json
from dataclasses import replace

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


def random_targets(positions: int, k: int, s: int, seed: int = 0, edges: tuple[int, ...] = ()) -> Targets:
    """Targets whose support and tail sum to one, with unused slots, empty tails and empty blocks among them."""
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
    if not edges:
        return Targets(ids, logp[:, :k], samples, logp[:, k], gold, entropy)
    share = rng.exponential(3, (positions, len(edges) - 1))
    share[:, 1:][rng.random((positions, len(edges) - 2)) < 0.2] = np.inf
    share = -share - np.log(np.exp(-share).sum(1, keepdims=True))
    log_blocks = np.where(no_tail[:, None], -np.inf, share + logp[:, k:]).astype(np.float32)
    log_collision = -rng.exponential(3, (positions, int(s > 0))).astype(np.float32)
    return Targets(ids, logp[:, :k], samples, logp[:, k], gold, entropy, log_blocks, log_collision, edges)


EDGES = (0, 256, 5_000, 70_000, VOCABULARY)


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("share_steps", [4, 8])
def test_a_blocks_share_is_given_back_to_a_step_and_the_blocks_sum_to_the_tail(samples: int, share_steps: int) -> None:
    layout, plain = RecordLayout(5, samples, 256, EDGES, share_steps), RecordLayout(5, samples, 256)
    targets = random_targets(400, 5, samples, edges=EDGES)
    planes = encode_records(layout, targets)
    assert layout.n_planes == plain.n_planes + 4 + (samples > 0)
    decoded = decode_records(layout, planes, VOCABULARY)
    assert decoded.edges == EDGES and decoded.log_blocks.dtype == decoded.log_collision.dtype == np.float32
    empty = np.isneginf(targets.log_blocks)
    assert (np.isneginf(decoded.log_blocks) == empty).all() and 0.1 < empty.mean() < 0.9
    apart = np.abs(decoded.log_blocks[~empty] - targets.log_blocks[~empty])
    assert apart.max() <= 1 / share_steps + 1 / 256
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(np.log(np.exp(decoded.log_blocks).sum(1)), decoded.log_tail, atol=1e-5)
    np.testing.assert_allclose(decoded.log_collision, targets.log_collision, atol=1 / 32 + 1e-6)
    whole = decode_records(plain, encode_records(plain, replace(targets)), VOCABULARY)
    for field in ("ids", "logp", "samples", "log_tail", "gold", "entropy"):
        np.testing.assert_array_equal(getattr(decoded, field), getattr(whole, field))


def test_blocks_of_a_tail_that_do_not_hold_it_are_damage() -> None:
    layout = RecordLayout(2, 0, 256, (0, 2, 300), 4)
    logp = np.log(np.array([[0.5, 0.3]], np.float32))
    log_tail = np.log(np.array([0.2], np.float32))
    zero = np.zeros(1, np.float32)
    none = np.empty((1, 0), np.int64)
    for ids, log_blocks, said in (
        ([[4, 5]], [[-np.inf, -np.inf]], "a tail that lies in no block"),
        ([[1, 0]], [[-3.0, -1.7]], "a block that has no token outside the support"),
    ):
        blocks = np.array(log_blocks, np.float32)
        targets = Targets(np.array(ids), logp, none, log_tail, zero, zero, blocks, edges=layout.edges)
        with pytest.raises(CacheDamagedError, match=said):
            decode_records(layout, encode_records(layout, targets), 300)
        full = replace(targets, ids=np.array([[4, 1]]), log_blocks=np.array([[-3.0, -1.7]], np.float32))
        decode_records(layout, encode_records(layout, full), 300)


def test_a_share_too_small_for_its_byte_stays_above_nothing() -> None:
    layout = RecordLayout(1, 0, 256, (0, 9, 300), 32)
    one = np.zeros(1, np.float32)
    log_tail = np.log(np.array([0.5], np.float32))
    blocks = np.concatenate([log_tail, log_tail - 60])[None]
    targets = Targets(np.array([[4]]), log_tail[None], np.empty((1, 0), np.int64), log_tail, one, one, blocks)
    decoded = decode_records(layout, encode_records(layout, replace(targets, edges=layout.edges)), 300)
    np.testing.assert_allclose(decoded.log_blocks[0, 1], log_tail[0] - 254 / 32, atol=0.01)


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
    document["attributes"]["footsteps"] = {"format": "footsteps-cache", "version": 4, "unheard_of": True}
    with pytest.raises(CacheMismatchError, match="format version 4, this program reads versions up to 3"):
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


def test_only_a_manifest_with_blocks_has_version_3_and_its_edges_cut_the_vocabulary() -> None:
    targets = manifest().targets.model_dump()
    blocks = {"edges": [0, 20, 300], "steps_per_nat": 4}
    with_blocks = manifest(version=3, targets={**targets, "blocks": blocks})
    assert unseal(Manifest, seal(with_blocks), "here") == with_blocks and with_blocks.targets.edges == (0, 20, 300)
    assert b"blocks" not in seal(manifest())
    for changes in ({"version": 3}, {"targets": {**targets, "blocks": blocks}}):
        with pytest.raises(ValidationError, match="version 3, and only it"):
            manifest(**changes)
    for edges in ([0, 20, 299], [20, 300], [0, 300, 300], [0], list(range(1026)), [0.0, 300]):
        with pytest.raises(ValidationError):
            manifest(version=3, targets={**targets, "blocks": {**blocks, "edges": edges}})
    with pytest.raises(CacheMismatchError, match=r"targets\.blocks\.edges: it has \[0, 20, 300\], now None"):
        compare(with_blocks, manifest(), "cache c")


def test_a_difference_is_named_with_both_values() -> None:
    other = manifest(tokenizer={"fingerprint": "u", "size": 300})
    with pytest.raises(CacheMismatchError, match=r"tokenizer\.fingerprint: it has 't', now 'u'") as error:
        compare(manifest(), other, "cache c")
    assert "size" not in str(error.value)


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "-x", "ü", "a" * 200])
def test_a_checkpoint_name_that_is_no_folder_name_everywhere_is_refused(name: str) -> None:
    with pytest.raises(CacheMismatchError, match="checkpoint name"):
        check_name(name)
