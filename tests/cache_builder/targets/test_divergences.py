"""Every divergence on K + G outcomes: value, gradient, limits."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from cache_builder.targets.divergences import DIVERGENCES, forward_kl, jsd, reverse_kl, taid
from tests.support.outcomes import random_outcomes
from tests.support.paths import ROOT
from trainer.loss.reference import PLAIN


def test_divergences_are_never_negative_and_zero_at_equality_in_float32():
    a = random_outcomes(0, rows=2000).float()
    for scale in (0.0, 1e-6, 1e-4, 1.0):
        b = torch.log_softmax(a + scale * torch.randn(a.shape, generator=torch.Generator().manual_seed(2)), dim=1)
        for divergence in (forward_kl, reverse_kl, lambda p, q: jsd(p, q, 0.3)):
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
    for function in (forward_kl, reverse_kl, lambda p, q: taid(p, q, t), lambda p, q: jsd(p, q, 0.3)):
        value, gradient = function(a, b)
        value_more, gradient_more = function(a_more, b_more)
        torch.testing.assert_close(value_more, value)
        torch.testing.assert_close(gradient_more[:, 1:], gradient)
        assert (gradient_more[:, 0] == 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_gradient_is_the_one_that_autograd_finds_for_the_logits(name):
    p, z = random_outcomes(0), random_outcomes(1).requires_grad_()
    row = DIVERGENCES[name]
    parameter = None if row.setting is None else 0.3
    _, gradient = row(p, torch.log_softmax(z, dim=1), parameter)
    value = sum(PLAIN[name](a.exp(), b.softmax(0), 0.3) for a, b in zip(p, z, strict=True))
    torch.testing.assert_close(gradient.detach(), torch.autograd.grad(value, z)[0])


def test_jsd_is_symmetric_at_one_half_and_leans_to_forward_and_reverse_kl_at_its_ends():
    p, q = random_outcomes(0), random_outcomes(1)
    torch.testing.assert_close(jsd(p, q, 0.5)[0], jsd(q, p, 0.5)[0])
    torch.testing.assert_close(jsd(p, q, 1e-10)[0] / 1e-10, forward_kl(p, q)[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(jsd(p, q, 1 - 1e-10)[0] / 1e-10, reverse_kl(p, q)[0], rtol=1e-3, atol=0)


def test_jsd_is_finite_where_the_teacher_has_no_tail():
    p = torch.log_softmax(random_outcomes(0)[:, :-1], dim=1)
    p = torch.cat([p, torch.full((50, 1), -torch.inf, dtype=torch.float64)], dim=1)
    value, gradient = jsd(p, random_outcomes(1), 0.5)
    assert value.isfinite().all() and gradient.isfinite().all()
    assert (value <= np.log(2)).all()


def test_the_table_can_be_read_without_torch():
    program = "import sys; from cache_builder.targets.divergences import DIVERGENCES; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
