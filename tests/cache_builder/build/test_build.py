"""A cache that is built holds what every checkpoint says of every sequence, the same bytes however it is built."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.errors import (
    MissingError,
)
from cache_builder.storage.local import LocalStore
from cache_builder.targets.blocks import block_edges
from tests.support.caches import Teaching, files_of

SEQUENCES = 120
"""Of the teaching."""


def load(teaching: Teaching, name: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(teaching.folder / name).eval()


@torch.no_grad()
def live_logp(model: LlamaForCausalLM, tokens: np.ndarray, completion: np.ndarray, vocab_size: int) -> np.ndarray:
    """The full log-probabilities [M, V] at a sequence's positions, by the plain road."""
    logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, :, :vocab_size]
    return logits[:-1][torch.from_numpy(completion[1:].copy())].log_softmax(1).numpy()


def test_every_target_is_what_the_checkpoint_says_of_its_sequence(teaching: Teaching, built: Path) -> None:
    cache = open_cache(str(built))
    assert cache.checkpoints == ("step-1", "step-2")
    assert teaching.corpus.n_positions > 3 * 63  # several shards, and sequences that straddle two
    for name in cache.checkpoints:
        model = load(teaching, name)
        for row in range(0, len(cache.corpus), 2):
            tokens, completion = teaching.corpus.sequence(row)
            logp = live_logp(model, tokens, completion, 300)
            targets = cache.read(name, [row])
            np.testing.assert_allclose(np.take_along_axis(logp, targets.ids, 1), targets.logp, atol=1 / 256)
            gold = logp[np.arange(len(logp)), tokens[1:][completion[1:]]]
            np.testing.assert_allclose(targets.gold, gold, atol=1e-5)
            np.testing.assert_allclose(targets.entropy, -(np.exp(logp) * logp).sum(1), atol=1e-5)
            tail = np.log1p(-np.exp(np.take_along_axis(logp, targets.ids, 1)).sum(1))
            np.testing.assert_allclose(targets.log_tail, tail, atol=1 / 256)
            assert not (targets.samples[:, :, None] == targets.ids[:, None]).any()


def test_a_cache_of_packed_sequences_says_what_one_of_padded_sequences_does(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    assert teaching.build(tmp_path / "cache", packing=True)
    packed, padded = open_cache(str(tmp_path / "cache")), open_cache(str(built))
    rows = np.arange(len(padded.corpus))
    for name in padded.checkpoints:
        ours, theirs = packed.read(name, rows), padded.read(name, rows)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_allclose(ours.logp, theirs.logp, rtol=0, atol=1 / 256)  # a step, where rounding tips it
        np.testing.assert_allclose(ours.gold, theirs.gold, rtol=0, atol=1e-5)
        np.testing.assert_allclose(packed.losses(name), padded.losses(name), rtol=0, atol=1e-5)
        assert packed.held_out(name) == pytest.approx(padded.held_out(name), abs=1e-6)


def test_a_cache_with_blocks_is_of_version_3_and_holds_what_the_checkpoint_says_of_each(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    assert teaching.build(tmp_path / "cache", tail_blocks=5, tail_steps_per_nat=8)
    cache, plain = open_cache(str(tmp_path / "cache")), open_cache(str(built))
    edges = block_edges(5, 300)
    assert (cache.manifest.version, plain.manifest.version) == (3, 1) and cache.manifest.targets.edges == edges
    assert not verify_cache(LocalStore(tmp_path / "cache")).damaged
    model = load(teaching, "step-2")
    for row in range(0, len(cache.corpus), 3):
        tail = np.exp(live_logp(model, *teaching.corpus.sequence(row), 300))
        targets = cache.read("step-2", [row])
        np.put_along_axis(tail, targets.ids, 0.0, 1)
        mass = np.stack([tail[:, start:end].sum(1) for start, end in pairwise(edges)], axis=1)
        np.testing.assert_allclose(targets.log_blocks, np.log(mass), atol=1 / 8)
        share = tail / tail.sum(1, keepdims=True)
        np.testing.assert_allclose(targets.log_collision[:, 0], np.log((share**2).sum(1)), atol=0.04)
        for field in ("ids", "logp", "samples", "log_tail", "gold", "entropy"):
            np.testing.assert_array_equal(getattr(targets, field), getattr(plain.read("step-2", [row]), field))


def test_losses_are_the_summed_gold_of_every_sequence_also_across_shards(teaching: Teaching, built: Path) -> None:
    cache = open_cache(str(built))
    for name in cache.checkpoints:
        expected = [-cache.read(name, [row]).gold.astype(np.float64).sum() for row in range(len(cache.corpus))]
        np.testing.assert_allclose(cache.losses(name), expected, rtol=1e-12)
        model, held_out = load(teaching, name), teaching.held_out
        total = 0.0
        for row in range(len(held_out)):
            tokens, completion = held_out.sequence(row)
            logp = live_logp(model, tokens, completion, 300)
            total -= logp[np.arange(len(logp)), tokens[1:][completion[1:]]].sum()
        assert cache.held_out(name) == pytest.approx(total / held_out.n_positions, rel=1e-5)


def test_the_probe_compares_all_checkpoints_on_the_anchors_top_tokens_and_the_gold(
    teaching: Teaching, built: Path
) -> None:
    cache = open_cache(str(built))
    ids, at = cache.probe_ids, 0
    assert len(cache.probe_rows) == 6
    anchor = load(teaching, "step-2")
    for row in cache.probe_rows:
        tokens, completion = cache.corpus.sequence(int(row))
        count = cache.corpus.sequence_positions(int(row))
        here = slice(at, at + count)
        top = np.argsort(-live_logp(anchor, tokens, completion, 300), axis=1, kind="stable")[:, :7]
        assert all(set(top[m]) <= set(ids[here][m]) for m in range(count))
        assert (ids[here] == tokens[1:][completion[1:]][:, None]).any(1).all()
        for name in cache.checkpoints:
            logp = live_logp(load(teaching, name), tokens, completion, 300)
            shared = np.take_along_axis(logp, ids[here], 1)
            np.testing.assert_allclose(cache.probe_logp(name)[here], shared, atol=1 / 256)
            rest = np.log1p(-np.exp(shared).sum(1))
            np.testing.assert_allclose(cache.probe_log_tail(name)[here], rest, atol=1 / 256)
        at += count
    assert at == len(ids)


def test_building_twice_gives_the_same_bytes_and_changes_none(teaching: Teaching, built: Path, tmp_path: Path) -> None:
    assert teaching.build(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(built)
    written = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    assert teaching.build(built)
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*") if path != built} == {
        path: time_ns for path, time_ns in written.items() if path != built
    }


@pytest.mark.parametrize("order", [[(1, 2), (0, 2)], [(2, 3), (1, 2), (0, 3), (1, 3)]])
def test_parts_of_any_number_in_any_order_give_the_same_bytes(
    teaching: Teaching, built: Path, tmp_path: Path, order: list[tuple[int, int]]
) -> None:
    complete = [teaching.build(tmp_path / "cache", part=part) for part in order]
    assert complete == [False] * (len(order) - 1) + [True]
    assert files_of(tmp_path / "cache") == files_of(built)


def test_a_checkpoint_added_on_another_day_leaves_the_first_ones_bytes_alone(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert teaching.build(cache, only="step-2")
    assert open_cache(str(cache)).checkpoints == ("step-2",)
    before = {key: data for key, data in files_of(cache).items() if "step-2" in key}
    assert teaching.build(cache)
    assert {key: data for key, data in files_of(cache).items() if "step-2" in key} == before
    assert files_of(cache) == files_of(built)
    with pytest.raises(MissingError, match=r"'step-9': there is none of that name; there are: step-1, step-2"):
        teaching.build(cache, only="step-9")
