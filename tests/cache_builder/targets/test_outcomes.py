"""K tokens and the tail as one outcome."""

import numpy as np
import torch

from cache_builder.targets.outcomes import bucket_kl, outcomes, retained_mass_at_least, temper
from cache_builder.targets.tensors import nothing
from tests.support.outcomes import random_outcomes


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


def test_outcomes_normalise_what_quantisation_has_moved():
    logp = random_outcomes(0).float()
    moved = (logp * 2048).round() / 2048
    joined = outcomes(moved[:, :-1], moved[:, -1:])
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
    targets = nothing(3)
    assert outcomes(targets.logp, targets.log_tail[:, None]).tolist() == [[0.0]] * 3
