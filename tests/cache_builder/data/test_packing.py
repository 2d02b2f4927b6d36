"""Packed batches hold every sequence once, whole, with position ids of its own."""

import numpy as np
import pytest

from cache_builder.data.batches import Batching
from cache_builder.data.packing import Packing, collate_packed, plan_packed
from tests.support.batches_of_noise import make_sequences


def test_packing_on_the_smallest_case() -> None:
    a, b, c = np.array([10, 11, 12, 13]), np.array([20, 21, 22]), np.array([30])
    mask = np.array([False, True, True, True])
    batch = collate_packed([(b, mask[:3]), (a, mask), (c, mask[:1])], 0, "rows")
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13], [20, 21, 22, 30]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert batch["label_M"].tolist() == [21, 22, 11, 12, 13]
    assert batch["hidden_index_M"].tolist() == [4, 5, 0, 1, 2]
    assert batch["sequence_M"].tolist() == [0, 0, 1, 1, 1]


def test_padding_goes_on_counting_and_is_masked_by_length_even_where_pad_is_eos() -> None:
    both = np.array([True, True])
    long = np.array([5, *[6] * 126, 0]), np.ones(128, bool)
    batch = collate_packed([long, (np.array([7, 0]), both)], 0, "rows")
    assert batch["position_ids"].tolist() == [[*range(128), *range(64)]]
    assert batch["attention_mask"].sum(1).tolist() == [130]
    assert batch["label_M"].tolist() == [*[6] * 126, 0, 0]


@pytest.mark.parametrize("packing", ["rows", "one row"])
def test_every_sequence_lies_in_its_batch_once_with_its_positions_in_the_order_of_the_sequences(
    packing: Packing,
) -> None:
    lengths = tuple(np.random.default_rng(3).integers(1, 60, 40).tolist())
    sequences = make_sequences(1, lengths)
    batch = collate_packed(sequences, 299, packing)
    flat = batch["input_ids"].reshape(-1).numpy()
    starts = np.flatnonzero((batch["position_ids"].reshape(-1) == 0).numpy())
    found = sorted(
        tuple(flat[start : start + length].tolist())
        for start in starts
        for length in lengths
        if tuple(flat[start : start + length].tolist()) in {tuple(tokens.tolist()) for tokens, _ in sequences}
    )
    assert set(found) >= {tuple(tokens.tolist()) for tokens, _ in sequences}
    labels = np.concatenate([tokens[1:][completion[1:]] for tokens, completion in sequences])
    before = np.concatenate([tokens[:-1][completion[1:]] for tokens, completion in sequences])
    np.testing.assert_array_equal(batch["label_M"], labels)
    np.testing.assert_array_equal(flat[batch["hidden_index_M"]], before)
    assert int(batch["attention_mask"].sum()) == sum(lengths)


@pytest.mark.parametrize("packing", ["rows", "one row"])
@pytest.mark.parametrize("longest", [64, 512, 5000])
def test_planned_batches_hold_every_sequence_once_keep_to_the_budget_and_pad_little(
    packing: Packing, longest: int
) -> None:
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(600) < 0.02, rng.integers(longest // 2, longest + 1, 600), rng.integers(8, 60, 600))
    batching = Batching(0, 2048, packing)
    batches = batching.plan(lengths)
    assert sorted(np.concatenate(batches).tolist()) == list(range(600))
    padded = 0
    for members in batches:
        batch = batching.collate([(np.ones(length, np.uint32), np.ones(length, bool)) for length in lengths[members]])
        size = batch["input_ids"].numel()
        assert size <= 2048 or len(members) == 1
        padded += size
    assert lengths.sum() > 0.95 * padded


def test_long_sequences_do_not_widen_the_rows_of_short_ones() -> None:
    lengths = np.array([1000, *[50] * 100])
    first, *others = plan_packed(lengths, 4000, "rows")
    assert 0 in first and len(others) > 0
    assert all(lengths[members].max() == 50 for members in others)
