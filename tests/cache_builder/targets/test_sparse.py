"""The maths of K+1 outcomes, and the uniforms behind tail samples."""

import numpy as np
import pytest
import torch

from cache_builder.format.records import Targets
from cache_builder.targets.sparse import (
    SparseTargets,
    bucket_kl,
    forward_kl,
    outcomes,
    retained_mass_at_least,
    reverse_kl,
    taid,
    tail_uniforms,
    temper,
)


def random_outcomes(seed: int, rows: int = 50, slots: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(3 * torch.randn(rows, slots + 1, generator=generator, dtype=torch.float64), dim=1)


def test_bucket_kl_is_the_kl_of_the_outcomes():
    a, b = random_outcomes(0), random_outcomes(1)
    expected = (a.exp() * (a - b)).sum(1)
    torch.testing.assert_close(bucket_kl(a[:, :-1], a[:, -1], b[:, :-1], b[:, -1]), expected)


def test_bucket_kl_bounds_the_full_kl_from_below_and_merging_less_bounds_it_closer():
    a, b = random_outcomes(0, slots=40), random_outcomes(1, slots=40)
    full = (a.exp() * (a - b)).sum(1)
    previous = torch.zeros_like(full)
    for kept in (1, 5, 20, 40):
        merged = bucket_kl(a[:, :kept], a[:, kept:].logsumexp(1), b[:, :kept], b[:, kept:].logsumexp(1))
        assert (merged >= previous - 1e-12).all()
        previous = merged
    assert (previous <= full + 1e-12).all()


def test_divergences_are_never_negative_and_zero_at_equality_in_float32():
    a = random_outcomes(0, rows=2000).float()
    for scale in (0.0, 1e-6, 1e-4, 1.0):
        b = torch.log_softmax(a + scale * torch.randn(a.shape, generator=torch.Generator().manual_seed(2)), dim=1)
        for divergence in (forward_kl, reverse_kl):
            value = divergence(a, b)[0]
            assert (value >= 0).all()
            if scale == 0.0:
                assert value.max() < 1e-12


def test_a_tiny_kl_keeps_its_digits_in_float32():
    """Σ a·log(a/b) alone loses all of them to the rounding of the log-probabilities' sum."""
    a = random_outcomes(0)
    noise = 1e-4 * torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a32 = a.float()
    b32 = torch.log_softmax(a + noise, dim=1).float()
    a_exact, b_exact = (torch.log_softmax(x.double(), dim=1) for x in (a32, b32))
    exact = (a_exact.exp() * (a_exact - b_exact)).sum(1)
    torch.testing.assert_close(forward_kl(a32, b32)[0].double(), exact, rtol=5e-2, atol=0)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_an_outcome_that_neither_side_has_adds_nothing(t):
    a, b = random_outcomes(0), random_outcomes(1)
    nothing = torch.full((50, 1), -torch.inf, dtype=torch.float64)
    a_more, b_more = torch.cat([nothing, a], dim=1), torch.cat([nothing, b], dim=1)
    for function in (forward_kl, reverse_kl, lambda p, q: taid(p, q, t)):
        value, gradient = function(a, b)
        value_more, gradient_more = function(a_more, b_more)
        torch.testing.assert_close(value_more, value)
        torch.testing.assert_close(gradient_more[:, 1:], gradient)
        assert (gradient_more[:, 0] == 0).all()


def test_outcomes_normalise_what_quantisation_has_moved():
    logp = random_outcomes(0).float()
    moved = (logp * 2048).round() / 2048
    joined = outcomes(moved[:, :-1], moved[:, -1])
    torch.testing.assert_close(joined.exp().sum(1), torch.ones(50))


def test_temper_raises_probabilities_to_the_power_of_one_over_t():
    logp = random_outcomes(0)
    powered = logp.exp() ** 0.5
    torch.testing.assert_close(temper(logp, 2.0).exp(), powered / powered.sum(1, keepdim=True))
    assert temper(logp, 1.0) is logp


def test_the_retained_mass_at_a_temperature_is_bounded_from_below_and_tightly():
    dense = random_outcomes(0, slots=39)
    values = dense.sort(1, descending=True).values
    support, tail = values[:, :8], values[:, 8:]
    for temperature in (1.0, 2.0, 4.0):
        exact = torch.softmax(values / temperature, dim=1)[:, :8].sum(1)
        bound = retained_mass_at_least(support, tail.logsumexp(1), 40, temperature)
        assert (bound <= exact + 1e-12).all()
        even = tail.logsumexp(1, keepdim=True).expand_as(tail) - np.log(32)
        exact_even = torch.softmax(torch.cat([support, even], dim=1) / temperature, dim=1)[:, :8].sum(1)
        torch.testing.assert_close(bound, exact_even)
    nothing = torch.full((50,), -torch.inf, dtype=torch.float64)
    assert (retained_mass_at_least(values, nothing, 40, 2.0) == 1).all()


def test_empty_targets_have_one_outcome_that_is_certain():
    targets = SparseTargets.empty(3)
    assert outcomes(targets.logp_MK, targets.log_tail_M).tolist() == [[0.0]] * 3


def test_what_the_reader_returns_becomes_tensors_of_the_right_types():
    zeros = np.zeros((4, 2), np.float32)
    targets = Targets(
        ids=np.array([[5, 6]] * 4, np.uint32),
        logp=zeros,
        samples=np.array([[7]] * 4, np.uint32),
        log_tail=zeros[:, 0],
        gold=zeros[:, 0],
        entropy=zeros[:, 0],
    )
    torch_targets = SparseTargets.from_numpy(targets)
    assert torch_targets.ids_MK.dtype == torch_targets.samples_MS.dtype == torch.int64
    assert torch_targets.ids_MK.tolist() == [[5, 6]] * 4
    assert torch_targets.logp_MK.dtype == torch_targets.log_tail_M.dtype == torch.float32


def test_uniforms_depend_on_seed_checkpoint_position_and_sample_and_on_nothing_else():
    positions = np.arange(1000, 2000)
    whole = tail_uniforms(7, "checkpoint-10", positions, 4)
    np.testing.assert_array_equal(tail_uniforms(7, "checkpoint-10", positions[300:500], 4), whole[300:500])
    np.testing.assert_array_equal(tail_uniforms(7, "checkpoint-10", positions, 2), whole[:, :2])
    for other in (tail_uniforms(8, "checkpoint-10", positions, 4), tail_uniforms(7, "checkpoint-20", positions, 4)):
        assert not (other == whole).any()


def test_uniforms_never_change_between_releases():
    values = tail_uniforms(0, "checkpoint-1", np.array([0, 1, 2**40]), 2)
    expected = [
        [0.38853640743148554, 0.014205124839343442],
        [0.9190567517054139, 0.4383537534389462],
        [0.9670611846018554, 0.151670102840901],
    ]
    np.testing.assert_array_equal(values, expected)


def test_uniforms_are_uniform_and_independent_across_neighbours():
    values = tail_uniforms(3, "x", np.arange(50_000), 2)
    assert values.min() > 0
    assert values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000.0) ** 2 / 1000.0).sum()
    assert chi_square < 160  # 99 degrees of freedom: 1 in 10,000
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.02
    assert abs(np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1]) < 0.02


def test_no_samples_is_an_empty_array_of_the_right_shape():
    assert tail_uniforms(0, "x", np.arange(5), 0).shape == (5, 0)
