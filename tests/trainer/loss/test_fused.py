"""The fused loss against a plain float64 reference and against the laws of its divergences."""

from dataclasses import replace

import pytest
import torch

from cache_builder.models.lm_head import Head
from cache_builder.targets.divergences import DIVERGENCES
from tests.support.loss_problems import (
    CASES,
    HIDDEN,
    POSITIONS,
    ROWS,
    VOCABULARY,
    check_against_reference,
    fused,
    make_problem,
    sparse,
)
from trainer.loss.fused import distillation_loss
from trainer.loss.reference import PLAIN


def test_every_divergence_has_its_textbook_form_and_a_case_here():
    assert PLAIN.keys() == DIVERGENCES.keys() == {divergence for divergence, _ in CASES}


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize(("divergence", "t"), CASES)
def test_value_and_gradients_are_those_of_float64_autograd(divergence, t, samples, temperature):
    check_against_reference(make_problem(samples=samples), divergence, t, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("divergence", "t"), CASES)
def test_with_the_whole_vocabulary_as_support_it_is_the_dense_divergence(divergence, t, temperature):
    problem = make_problem(slots=VOCABULARY, samples=3)
    assert problem.targets.log_tail.isneginf().all()
    z = problem.hidden @ problem.weight[:VOCABULARY].T
    q = torch.softmax(z / temperature, dim=1)
    p = torch.softmax(problem.teacher / temperature, dim=1)
    dense = temperature**2 * torch.stack([PLAIN[divergence](*row, t) for row in zip(p, q, strict=True)])
    output = fused(problem, divergence, t, temperature=temperature)
    torch.testing.assert_close(output.divergence_M, dense.detach())
    problem.ce_weight = torch.zeros(POSITIONS)
    expected = torch.autograd.grad((problem.divergence_weight * dense).sum(), problem.hidden)
    actual = torch.autograd.grad(fused(problem, divergence, t, temperature=temperature).loss, problem.hidden)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("divergence", "t"), CASES)
@pytest.mark.parametrize("slots", [1, 5, VOCABULARY])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(slots, divergence, t, temperature):
    problem = make_problem()
    teacher = torch.log_softmax(problem.hidden.detach() @ problem.weight.detach()[:VOCABULARY].T, dim=1)
    problem.targets = sparse(teacher, slots, samples=0)
    problem.ce_weight = torch.zeros(POSITIONS)
    output = fused(problem, divergence, t, temperature=temperature)
    grads = torch.autograd.grad(output.loss, [problem.hidden, problem.weight])
    assert output.divergence_M.abs().max() < 1e-14
    assert all(grad.abs().max() < 1e-14 for grad in grads)


def test_taid_at_t_one_is_forward_kl_on_the_same_outcomes():
    problem = make_problem(samples=0)
    taid, forward = fused(problem, "taid", 1.0), fused(problem, "forward_kl")
    torch.testing.assert_close(taid.divergence_M, forward.divergence_M)
    torch.testing.assert_close(
        torch.autograd.grad(taid.loss, problem.weight), torch.autograd.grad(forward.loss, problem.weight)
    )


def test_forward_kl_with_one_sample_is_unbiased_for_the_full_kl_in_value_and_gradient():
    problem = make_problem(slots=4, samples=1)
    problem.ce_weight = torch.zeros(POSITIONS)
    logq = torch.log_softmax(problem.hidden @ problem.weight[:VOCABULARY].T, dim=1)
    full_M = (problem.teacher.exp() * (problem.teacher - logq)).sum(1)
    full_grad = torch.autograd.grad((problem.divergence_weight * full_M).sum(), problem.hidden)[0]
    tail = problem.teacher.exp().scatter(1, problem.targets.ids, 0.0)
    tail = tail / tail.sum(1, keepdim=True)
    mean_kl_M, mean_grad = torch.zeros(POSITIONS, dtype=torch.float64), torch.zeros_like(full_grad)
    for token in range(VOCABULARY):  # every draw there is, by its probability; inside the support it has none
        probability_M = tail[:, token]
        problem.targets = replace(problem.targets, samples=torch.full((POSITIONS, 1), token))
        output = fused(problem)
        mean_kl_M += probability_M * output.divergence_M
        mean_grad += probability_M[:, None] * torch.autograd.grad(output.loss, problem.hidden)[0]
    torch.testing.assert_close(mean_kl_M, full_M.detach())
    torch.testing.assert_close(mean_grad, full_grad)


@pytest.mark.parametrize(("divergence", "t"), CASES)
@pytest.mark.parametrize("samples", [0, 3])
def test_an_unused_slot_changes_nothing(samples, divergence, t):
    problem = make_problem(slots=3, samples=samples)
    plain = fused(problem, divergence, t)
    expected = torch.autograd.grad(plain.loss, [problem.hidden, problem.weight])
    targets = problem.targets
    problem.targets = replace(
        targets,
        ids=torch.cat([targets.ids, targets.ids[:, :1].expand(-1, 4)], dim=1),
        logp=torch.cat([targets.logp, torch.full((POSITIONS, 4), -torch.inf)], dim=1),
    )
    padded = fused(problem, divergence, t)
    torch.testing.assert_close(padded.divergence_M, plain.divergence_M)
    torch.testing.assert_close(torch.autograd.grad(padded.loss, [problem.hidden, problem.weight]), expected)


def test_rows_beyond_the_vocabulary_have_no_gradient_and_no_say():
    problem = make_problem()
    loss = fused(problem).loss
    grad = torch.autograd.grad(loss, problem.weight)[0]
    assert grad.shape == (ROWS, HIDDEN)
    assert (grad[VOCABULARY:] == 0).all()
    with torch.no_grad():
        problem.weight[VOCABULARY:] = 1e6
    assert fused(problem).loss == loss


def test_a_frozen_head_gets_no_gradient_and_leaves_the_hidden_states_theirs():
    problem = make_problem()
    expected = torch.autograd.grad(fused(problem).loss, problem.hidden)
    problem.head = Head(problem.weight.detach(), None, VOCABULARY)
    torch.testing.assert_close(torch.autograd.grad(fused(problem).loss, problem.hidden), expected)


def test_without_targets_it_is_the_cross_entropy():
    problem = make_problem()
    problem.targets = None
    logits = problem.hidden @ problem.weight[:VOCABULARY].T
    expected = (problem.ce_weight * torch.nn.functional.cross_entropy(logits, problem.gold, reduction="none")).sum()
    output = fused(problem)
    torch.testing.assert_close(output.loss, expected)
    assert (output.divergence_M == 0).all()
    torch.testing.assert_close(
        torch.autograd.grad(output.loss, problem.weight), torch.autograd.grad(expected, problem.weight)
    )


def test_a_batch_without_positions_has_a_zero_loss_with_zero_gradients():
    problem = make_problem()
    hidden = torch.zeros(0, HIDDEN, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.float64)
    for targets in (None, sparse(torch.zeros(0, VOCABULARY), 5, 0)):
        output = distillation_loss(hidden, problem.head, targets, nothing.long(), nothing, nothing)
        assert output.loss == 0
        grad_hidden, grad_weight = torch.autograd.grad(output.loss, [hidden, problem.weight])
        assert grad_hidden.shape == (0, HIDDEN)
        assert (grad_weight == 0).all()


@pytest.mark.parametrize(("divergence", "t"), CASES)
def test_positions_without_weight_add_nothing_and_parts_of_a_batch_add_up(divergence, t):
    """So gradient accumulation and data parallelism give the gradient of the whole batch."""
    problem = make_problem()
    whole = torch.autograd.grad(fused(problem, divergence, t).loss, problem.weight)[0]
    divergence_weight, ce_weight = problem.divergence_weight, problem.ce_weight
    total = torch.zeros_like(whole)
    for part in (slice(0, 2), slice(2, POSITIONS)):
        chosen = torch.zeros(POSITIONS, dtype=torch.float64)
        chosen[part] = 1.0
        problem.divergence_weight, problem.ce_weight = divergence_weight * chosen, ce_weight * chosen
        grad_hidden, grad_weight = torch.autograd.grad(
            fused(problem, divergence, t).loss, [problem.hidden, problem.weight]
        )
        assert (grad_hidden[chosen == 0] == 0).all()
        total += grad_weight
    torch.testing.assert_close(total, whole)


def test_a_t_without_taid_is_refused():
    problem = make_problem()
    with pytest.raises(ValueError, match="parameter"):
        fused(problem, "forward_kl", 0.5)
    with pytest.raises(ValueError, match="parameter"):
        fused(problem, "taid", None)
