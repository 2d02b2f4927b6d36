"""Capture against the model's own logits, in float64 where the exact answer is wanted."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from cache_builder.capture.capture import (
    NonFiniteError,
    begin_capture,
    gold_logp,
    probe_ids,
    probe_logp,
    sequence_losses,
)
from cache_builder.data.batching import Batch, collate
from cache_builder.errors import ConfigError, ModelError
from cache_builder.models.lm_head import hidden_states_at, verify_head
from cache_builder.targets.sampling import tail_uniforms
from tests.support.batches_of_noise import VOCABULARY, dense_logp, make_batch, make_sequences, uniforms


def captured(model: nn.Module, batch: Batch, top_k: int = 8, top_p: float = 1.0, samples: int = 4, **options):
    return begin_capture(
        model, batch, VOCABULARY, top_k=top_k, top_p=top_p, uniforms_MS=uniforms(batch, samples), **options
    ).arrived()


@pytest.mark.parametrize("top_k", [1, 8, 150, VOCABULARY])
@pytest.mark.parametrize("peaked", [1.0, 30.0])
def test_targets_are_those_of_the_model_s_own_logits(make_model, top_k, peaked):
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        model.lm_head.weight *= peaked
    exact = dense_logp(model, batch)
    values, ids = exact.topk(top_k, dim=1)
    result = captured(model, batch, top_k)
    np.testing.assert_array_equal(result.ids, ids)
    np.testing.assert_allclose(result.logp, values, atol=1e-5)
    np.testing.assert_allclose(result.gold, exact.gather(1, batch["label_M"][:, None])[:, 0], atol=1e-5)
    np.testing.assert_allclose(result.entropy, -(exact.exp() * exact).sum(1), atol=1e-5)
    tail = exact.exp().scatter(1, ids, 0.0)
    if top_k == VOCABULARY:
        assert np.isneginf(result.log_tail).all()
        assert (result.samples == result.ids[:, :1]).all()
    else:
        np.testing.assert_allclose(result.log_tail, tail.sum(1).log(), atol=1e-5)
        assert (tail.gather(1, torch.from_numpy(result.samples)) > 0).all()
    np.testing.assert_allclose(np.exp(result.logp).sum(1) + np.exp(result.log_tail), 1.0, atol=1e-6)


def test_equal_logits_are_ordered_by_rising_id(make_model):
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    result = captured(model, batch, top_k=5)
    assert (result.ids == np.arange(5)).all()
    np.testing.assert_allclose(result.log_tail, np.log(295 / 300), atol=1e-6)


def test_top_p_keeps_the_smallest_prefix_that_holds_it(make_model):
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        model.lm_head.weight *= 30
    whole, cut = captured(model, batch, 16), captured(model, batch, 16, top_p=0.7)
    mass = np.exp(whole.logp.astype(np.float64))
    used = mass.cumsum(1) - mass < 0.7
    assert 0 < (~used).sum() < used.size
    assert used[:, 0].all()
    np.testing.assert_array_equal(np.isneginf(cut.logp), ~used)
    np.testing.assert_array_equal(cut.ids, np.where(used, whole.ids, whole.ids[:, :1]))
    tail = np.exp(whole.log_tail.astype(np.float64)) + np.where(used, 0.0, mass).sum(1)
    np.testing.assert_allclose(cut.log_tail, np.log(tail), atol=1e-5)
    np.testing.assert_allclose(cut.entropy, whole.entropy, atol=1e-5)
    np.testing.assert_allclose(cut.gold, whole.gold, atol=1e-5)
    support = np.where(used, cut.ids, -1)
    assert not (cut.samples[:, :, None] == support[:, None, :]).any()


@pytest.mark.parametrize("top_p", [0.5, 1.0])
@pytest.mark.parametrize("top_k", [1, 8, 150, VOCABULARY])
@pytest.mark.parametrize("peaked", [1.0, 30.0])
def test_the_tail_s_mass_by_blocks_is_that_of_the_model_s_own_logits(make_model, top_k, top_p, peaked):
    model, batch, edges = make_model(), make_batch(), (0, 3, 70, 71, 200, VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight *= peaked
    exact = dense_logp(model, batch).exp().numpy()
    result = captured(model, batch, top_k, top_p, edges=edges)
    for target, row in zip(result.ids, exact, strict=True):
        row[target] = 0.0
    assert result.edges == edges
    np.testing.assert_allclose(np.exp(result.log_blocks).sum(1), np.exp(result.log_tail), atol=1e-6)
    for block, (start, end) in enumerate(pairwise(edges)):
        mass, tokens = exact[:, start:end].sum(1), (exact[:, start:end] > 0).sum(1)
        np.testing.assert_allclose(result.log_blocks[:, block][tokens > 0], np.log(mass[tokens > 0]), atol=1e-4)
        assert np.isneginf(result.log_blocks[:, block][tokens == 0]).all()
    tail = exact.sum(1) > 0
    share = exact[tail] / exact[tail].sum(1, keepdims=True)
    np.testing.assert_allclose(result.log_collision[tail, 0], np.log((share**2).sum(1)), atol=1e-4)


def test_collisions_are_kept_only_with_samples_and_neither_without_blocks(make_model):
    model, batch = make_model(), make_batch()
    one, other = captured(model, batch), captured(model, batch, samples=0, edges=(0, VOCABULARY))
    assert one.log_blocks.shape[1] == one.log_collision.shape[1] == other.log_collision.shape[1] == 0
    np.testing.assert_allclose(other.log_blocks[:, 0], one.log_tail, atol=1e-6)


def test_results_do_not_depend_on_the_batch(make_model):
    model, sequences = make_model(), make_sequences()
    whole = captured(model, make_batch())
    numbers = tail_uniforms(0, "checkpoint-1", np.arange(len(whole.gold)), 4)
    start = 0
    for sequence in sequences:
        alone = collate([sequence], pad_id=1)
        end = start + len(alone["label_M"])
        one = begin_capture(model, alone, VOCABULARY, top_k=8, top_p=1.0, uniforms_MS=numbers[start:end]).arrived()
        np.testing.assert_array_equal(one.ids, whole.ids[start:end])
        np.testing.assert_array_equal(one.samples, whole.samples[start:end])
        for name in ("logp", "log_tail", "gold", "entropy"):
            np.testing.assert_allclose(getattr(one, name), getattr(whole, name)[start:end], atol=1e-5)
        start = end


@pytest.mark.parametrize("chunk_positions", [1, 3, 1000])
def test_the_chunk_size_changes_nothing(make_model, chunk_positions):
    model, batch = make_model(), make_batch()
    whole, chunked = captured(model, batch), captured(model, batch, chunk_positions=chunk_positions)
    np.testing.assert_array_equal(chunked.ids, whole.ids)
    np.testing.assert_array_equal(chunked.samples, whole.samples)
    np.testing.assert_allclose(chunked.logp, whole.logp, atol=1e-5)


def test_the_loss_of_a_sequence_is_the_model_s_own_cross_entropy(make_model):
    model = make_model(vocab_size=VOCABULARY)
    sequences = make_sequences()
    batch = make_batch()
    result = captured(model, batch)
    losses = sequence_losses(batch, result.gold, len(batch["input_ids"]))
    for row, (tokens, completion) in enumerate(sequences):
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(completion)[None], ids, -100)
        with torch.no_grad():
            own = model(input_ids=ids, labels=labels).loss.item() * int(completion[1:].sum())
        np.testing.assert_allclose(losses[row], own, rtol=1e-5)
    np.testing.assert_allclose(gold_logp(model, batch, VOCABULARY), result.gold, atol=1e-6)


def test_a_batch_without_positions_is_captured_as_nothing(make_model):
    sequences = [(np.arange(5, dtype=np.uint32), np.zeros(5, np.bool_))] * 2
    batch = collate(sequences, pad_id=1)
    result = captured(make_model(), batch)
    assert result.ids.shape == (0, 8)
    assert result.samples.shape == (0, 4)
    assert sequence_losses(batch, result.gold, len(batch["input_ids"])).tolist() == [0.0, 0.0]
    assert gold_logp(make_model(), batch, VOCABULARY).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_teachers_have_a_float32_head_and_softmax(make_model, dtype):
    """The hidden states are rounded by the model; from there on nothing is."""
    model, batch = make_model().to(dtype), make_batch()
    with torch.no_grad():
        hidden, head = hidden_states_at(model, batch, VOCABULARY)
    assert hidden.dtype == dtype
    exact = torch.log_softmax(hidden.double() @ head.weight_VD.double()[:VOCABULARY].T, dim=1).detach()
    values, ids = exact.topk(8, dim=1)
    result = captured(model, batch)
    np.testing.assert_array_equal(result.ids, ids)
    np.testing.assert_allclose(result.logp, values, atol=1e-5)
    own = dense_logp(model, batch).gather(1, batch["label_M"][:, None])[:, 0]
    np.testing.assert_allclose(result.gold, own, atol=8 * torch.finfo(dtype).eps)


def test_the_probe_s_log_probabilities_and_the_mass_outside_them_are_exact(make_model):
    model, batch = make_model(), make_batch()
    ids = probe_ids(model, batch, VOCABULARY, 20)
    exact = dense_logp(model, batch)
    expected = exact.gather(1, torch.from_numpy(ids))
    rest = exact.exp().scatter(1, torch.from_numpy(ids), 0.0).sum(1).log()
    logp, log_rest = probe_logp(model, batch, VOCABULARY, ids)
    np.testing.assert_allclose(logp, expected, atol=1e-5)
    np.testing.assert_allclose(log_rest, rest, atol=1e-5)


def test_the_probe_s_ids_are_distinct_and_hold_top_tokens_and_gold(make_model):
    model, batch = make_model(), make_batch()
    top = dense_logp(model, batch).topk(20, dim=1).indices.numpy()
    ids = probe_ids(model, batch, VOCABULARY, 20)
    gold = batch["label_M"].numpy()
    assert all(len(set(row)) == 20 for row in ids.tolist())
    assert (ids == gold[:, None]).any(1).all()
    np.testing.assert_array_equal(ids[:, :19], top[:, :19])
    assert probe_ids(model, batch, VOCABULARY, 10_000).shape == (len(gold), VOCABULARY)


def test_nan_and_infinity_stop_the_capture_and_name_the_row(make_model):
    batch = make_batch()
    for value in (float("nan"), float("inf")):
        model = make_model()
        verify_head(model)
        model.model.register_forward_hook(
            lambda module, inputs, output, value=value: output.last_hidden_state.__setitem__((2, slice(None)), value)
        )
        with pytest.raises(NonFiniteError, match="row 2 of the batch, at its position 0") as caught:
            captured(model, batch)
        assert caught.value.row == 2
        with pytest.raises(NonFiniteError, match="row 2"):
            gold_logp(model, batch, VOCABULARY)
        with pytest.raises(NonFiniteError, match="row 2"):
            probe_logp(model, batch, VOCABULARY, np.zeros((len(batch["label_M"]), 1), np.int64))


def test_top_k_above_the_vocabulary_is_refused(make_model):
    with pytest.raises(ConfigError, match=r"top_k is 301.* only 300"):
        captured(make_model(), make_batch(), top_k=301)


def test_a_teacher_with_its_dropout_left_on_is_refused(make_model):
    """Pitfall 20."""
    model, batch = make_model(attention_dropout=0.1).train(), make_batch()
    for read in (
        lambda: captured(model, batch),
        lambda: gold_logp(model, batch, VOCABULARY),
        lambda: probe_ids(model, batch, VOCABULARY, 4),
        lambda: probe_logp(model, batch, VOCABULARY, np.zeros((len(batch["label_M"]), 1), np.int64)),
    ):
        with pytest.raises(ModelError, match="training mode"):
            read()
