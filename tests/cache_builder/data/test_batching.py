"""The one shift and the one padding."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cache_builder.data.batching import PASS_PART, collate, plan_batches


def test_the_shift_on_the_smallest_case() -> None:
    batch = collate([(np.array([9, 5, 2]), np.array([False, True, True]))], pad_id=0)
    assert batch["label_M"].tolist() == [5, 2]
    assert batch["hidden_index_M"].tolist() == [0, 1]


def test_a_completion_at_the_first_token_has_nothing_to_be_predicted_from() -> None:
    batch = collate([(np.array([9, 5]), np.array([True, True]))], pad_id=0)
    assert batch["label_M"].tolist() == [5]


def test_padding_is_masked_by_length_even_where_pad_is_eos() -> None:
    sequences = [(np.array([4, 5, 6, 0]), np.array([0, 0, 1, 1], bool)), (np.array([7, 0]), np.array([0, 1], bool))]
    batch = collate(sequences, pad_id=0)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["label_M"].tolist() == [6, 0, 0]
    assert batch["sequence_M"].tolist() == [0, 0, 1]
    assert batch["hidden_index_M"].tolist() == [1, 2, 4]


def test_positions_give_the_models_own_loss(make_model) -> None:  # type: ignore[no-untyped-def]
    model: LlamaForCausalLM = make_model()
    tokens = np.array([3, 14, 15, 92, 65])
    batch = collate([(tokens, np.array([0, 0, 1, 1, 1], bool)), (tokens[:3], np.array([0, 1, 1], bool))], pad_id=1)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.flatten(0, 1)
        ours = torch.nn.functional.cross_entropy(logits[batch["hidden_index_M"]], batch["label_M"], reduction="sum")
        labels = [torch.tensor([[-100, -100, 15, 92, 65]]), torch.tensor([[-100, 14, 15]])]
        theirs = sum(
            model(input_ids=torch.tensor(tokens[: label.shape[1]])[None], labels=label).loss * (label != -100).sum()
            for label in labels
        )
    torch.testing.assert_close(ours, theirs)


def test_planned_batches_hold_every_sequence_once_and_keep_to_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    batches = plan_batches(lengths, 256)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(len(batch) * lengths[batch].max() <= 256 for batch in batches)
    assert [batch.tolist() for batch in plan_batches(np.array([300, 2]), 256)] == [[0], [1]]


def cost(lengths: np.ndarray, batches: list[np.ndarray], batch_tokens: int) -> int:
    return sum(len(batch) * int(lengths[batch].max()) + batch_tokens // PASS_PART for batch in batches)


def test_no_other_cut_of_the_sorted_sequences_is_cheaper() -> None:
    rng = np.random.default_rng(0)
    for batch_tokens in (64, 200, 1000):
        for _ in range(20):
            lengths = rng.integers(1, 60, 9)
            by_length, every = np.argsort(-lengths, kind="stable"), []
            for cuts in range(1 << 8):
                batches = np.split(by_length, [place + 1 for place in range(8) if cuts >> place & 1])
                if all(len(batch) * lengths[batch].max() <= batch_tokens for batch in batches):
                    every.append(cost(lengths, batches, batch_tokens))
            assert cost(lengths, plan_batches(lengths, batch_tokens), batch_tokens) == min(every)


@pytest.mark.parametrize("batch_tokens", [2048, 16384])
def test_batches_of_many_lengths_pad_less_than_a_twentieth(batch_tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(8, 512, 1000)
    padded = sum(len(batch) * lengths[batch].max() for batch in plan_batches(lengths, batch_tokens))
    assert lengths.sum() > 0.95 * padded


def test_a_batch_of_like_lengths_is_as_large_as_it_may_be() -> None:
    assert [len(batch) for batch in plan_batches(np.full(50, 20), 400)] == [20, 20, 10]
