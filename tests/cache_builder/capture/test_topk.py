"""Rows of logits to targets: winners and ties, the tail's mass, and what is drawn from it."""

import numpy as np
import pytest
import torch

from cache_builder.capture import topk as extract_module
from cache_builder.capture.topk import draw, extract, log_sum_exp, logp_and_rest, slices, top
from cache_builder.targets.sparse import ARRAYS


def test_the_two_stages_find_the_same_winners_as_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 64 * 50, generator=generator).mul_(4).round_()  # rounded, so that most rows tie
    ids, values = top(logits, 3190, 9)
    order = np.lexsort((np.arange(3190)[None].repeat(40, 0), -logits[:, :3190].numpy()))[:, :9]
    # the columns beyond the vocabulary hold −1e30 in use
    logits[:, 3190:] = -1e30
    ids, values = top(logits, 3190, 9)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, np.take_along_axis(logits.numpy(), order, 1))
    monkeypatch.setattr(extract_module, "BLOCK", 640)
    np.testing.assert_array_equal(top(logits, 3190, 9)[0], order)


def test_zero_of_either_sign_ties():
    logits = torch.zeros(1, 64)
    logits[0, 3] = -0.0
    assert top(logits, 64, 6)[0].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_tail_of_e_to_the_minus_ninety_is_exact():
    """Relative to the row's maximum it would have underflowed; the tail's own maximum is subtracted instead."""
    logits = torch.full((1, 320), -1e30)
    logits[0, :300] = -torch.linspace(100, 101, 300)
    logits[0, [7, 9]] = torch.tensor([10.0, 9.0])
    exact = torch.log_softmax(logits[0, :300].double(), 0)
    outside = [token for token in range(300) if token not in (7, 9)]
    expected = exact[outside].logsumexp(0)
    chunk = extract(logits, 300, torch.tensor([5]), torch.tensor([[0.1, 0.9]], dtype=torch.float64), 2, 1.0)
    ids, samples, log_tail, gold = chunk.ids, chunk.samples, chunk.log_tail, chunk.gold
    assert ids.tolist() == [[7, 9]]
    np.testing.assert_allclose(log_tail, expected, rtol=1e-6)
    np.testing.assert_allclose(gold, exact[5], rtol=1e-6)
    assert samples[0, 0] in outside
    assert samples[0, 1] in outside


def test_a_block_with_tokens_has_mass_even_below_what_float32_can_say():
    logits = torch.full((2, 320), -1e30)
    logits[:, :300] = 0.0
    logits[:, :8] = 200.0
    logits[1, 8:16] = 150.0
    gold, no_draws = torch.tensor([5, 5]), torch.empty(2, 0, dtype=torch.float64)
    targets = extract(logits, 300, gold, no_draws, 7, 1.0, (0, 7, 8, 16, 300))
    assert targets.log_blocks[:, 0].isneginf().all()  # the support fills it
    torch.testing.assert_close(targets.log_blocks[:, 1], targets.log_tail)
    torch.testing.assert_close(targets.log_blocks[1, 2], targets.log_tail[1] - 50 + torch.tensor(8.0).log())
    assert targets.log_blocks[:, 3].isfinite().all() and targets.log_blocks[:, 3].max() < -80


def test_tail_samples_follow_the_tail():
    """200,000 draws against the probabilities: a chi-square test with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 256, generator=generator) * 2
    row[0, 250:] = -1e30
    tail = torch.softmax(row[0].double(), 0)
    top = row[0].topk(3).indices
    tail[top] = 0
    tail /= tail.sum()
    draws = 200_000
    drawn = extract(
        row.clone(), 250, torch.tensor([0]), torch.rand(1, draws, generator=generator, dtype=torch.float64), 3, 1.0
    ).samples
    counts = torch.bincount(drawn[0], minlength=256).double()
    assert (counts[top] == 0).all()
    assert (counts[250:] == 0).all()
    common = tail * draws > 5
    chi_square = ((counts - tail * draws) ** 2 / (tail * draws))[common].sum() / common.sum()
    assert 0.7 < chi_square < 1.3


def test_a_chunk_taken_by_slices_is_the_chunk_taken_whole(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(11, 320, generator=generator) * 3
    gold = torch.randint(320, (11,), generator=generator)
    numbers = torch.rand(11, 5, generator=generator, dtype=torch.float64)
    ids = torch.arange(7).expand(11, 7)

    def everything():
        return (
            *(getattr(extract(logits.clone(), 320, gold, numbers, 6, 0.9, (0, 9, 64, 320)), name) for name in ARRAYS),
            *log_sum_exp(logits.clone()),
            *logp_and_rest(logits.clone(), ids),
        )

    assert len(list(slices(logits))) == 1
    whole = everything()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(extract_module, "_CACHED_LOGITS", 4 * 320)
    assert [len(logits[rows]) for rows in slices(logits)] == [4, 4, 3]
    for sliced, expected in zip(everything(), whole, strict=True):
        torch.testing.assert_close(sliced, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("top_k", [4, 64])
def test_tail_samples_also_follow_the_slots_that_top_p_dropped(top_k):
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 64, generator=generator) * 2
    exact = torch.softmax(row[0].double(), 0)
    draws = 200_000
    numbers = torch.rand(1, draws, generator=generator, dtype=torch.float64)
    targets = extract(row.clone(), 64, torch.tensor([0]), numbers, top_k, float(exact.max()) / 2)
    ids, logp, drawn, log_tail = targets.ids, targets.logp, targets.samples, targets.log_tail
    assert (logp[0] > -torch.inf).sum() == 1
    tail = exact.clone()
    tail[ids[0, 0]] = 0
    np.testing.assert_allclose(log_tail, tail.sum().log(), rtol=1e-5)
    expected = tail / tail.sum() * draws
    common = expected > 5
    counts = torch.bincount(drawn[0], minlength=64).double()
    assert counts[ids[0, 0]] == 0
    chi_square = ((counts - expected) ** 2 / expected)[common].sum() / common.sum()
    assert 0.5 < chi_square < 1.6


@pytest.mark.parametrize("value", [0.5 * 2.0**-52, 0.25, 0.5, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_draw_a_token_that_has_mass(value):
    weights = torch.zeros(3, 192)
    weights[0, [70, 80]] = torch.tensor([1e-30, 1e-30])
    weights[1, [0, 191]] = torch.tensor([1.0, 3e-8])
    weights[2, 63:65] = 0.1
    total = weights.sum(1, keepdim=True)
    blocks = weights.unflatten(1, (-1, extract_module.BLOCK)).sum(2) / total
    drawn = draw(weights.log(), total.log(), blocks, torch.full((3, 1), value, dtype=torch.float64))
    assert (weights.gather(1, drawn) > 0).all()
