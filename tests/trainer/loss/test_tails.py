"""What stands for the teacher's tail: blocks, one outcome, samples, and mixtures, against the float64 reference."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from cache_builder.build.audit import dense_target
from cache_builder.targets.sparse import Targets
from cache_builder.targets.tail import Kept, Tail, choose_tail
from tests.support.loss_problems import (
    CASES,
    POSITIONS,
    VOCABULARY,
    check_against_reference,
    fused,
    make_problem,
    sparse,
)

EDGES = (0, 2, 3, 9, 16, VOCABULARY)
SETTINGS = ("bucket", "blocks", "samples", "mixed", "adaptive", "pooled")


def tail_of(setting: Any, problem: Any, weight: float = 0.3) -> Tail:
    targets = problem.targets
    tail = choose_tail(setting, Kept(targets.samples.shape[1], targets.log_blocks.shape[1]), True, weight)
    return replace(tail, sample_weight=weight) if tail.pooled else tail


def grads(problem: Any, **options: Any) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(fused(problem, **options).loss, [problem.hidden, problem.weight])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("divergence", "t"), CASES)
@pytest.mark.parametrize("slots", [1, 5, 20])
def test_with_blocks_value_and_gradients_are_those_of_float64_autograd(
    slots: int, divergence: str, t: float | None, temperature: float
) -> None:
    problem = make_problem(slots=slots, samples=2, edges=EDGES)
    check_against_reference(problem, divergence, t, temperature, Tail(by_block=True))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_tail_of_forward_kl_is_that_of_float64_autograd(setting: str, dtype: torch.dtype) -> None:
    problem = make_problem(samples=4, edges=EDGES, dtype=dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 3e-5
    check_against_reference(problem, "forward_kl", None, 1.0, tail_of(setting, problem), tolerance, tolerance)


def test_without_blocks_a_mixture_is_one_with_the_bucket() -> None:
    problem = make_problem(samples=4)
    check_against_reference(problem, "forward_kl", None, 1.0, Tail(by_block=False, sample_weight=0.3))


@pytest.mark.parametrize("by_block", [False, True])
def test_lambda_zero_is_the_outcomes_and_lambda_one_the_samples_to_the_bit(by_block: bool) -> None:
    problem = make_problem(samples=3, edges=EDGES, dtype=torch.float32)
    # 1e-30 is 0 beside anything, and yet goes by the way of the mixture, which 0 would leave out
    for weight, plain in ((1e-30, Tail(by_block)), (1.0, Tail(sample_weight=1.0))):
        mixed = Tail(by_block, weight)
        one, other = fused(problem, tail=mixed), fused(problem, tail=plain)
        if weight == 1.0 and by_block:  # q of a token by its block's sum or the tail's: equal to rounding
            torch.testing.assert_close(one.divergence_M, other.divergence_M)
            torch.testing.assert_close(grads(problem, tail=mixed), grads(problem, tail=plain))
        else:
            assert torch.equal(one.divergence_M, other.divergence_M)
            for a, b in zip(grads(problem, tail=mixed), grads(problem, tail=plain), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_the_gradient_is_linear_in_lambda() -> None:
    problem = make_problem(samples=3, edges=EDGES)
    ends = [grads(problem, tail=Tail(True, weight)) for weight in (0.0, 1.0)]
    expected = [torch.lerp(blocks, samples, 0.3) for blocks, samples in zip(*ends, strict=True)]
    torch.testing.assert_close(list(grads(problem, tail=Tail(True, 0.3))), expected)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradient_is_q_minus_the_target_that_the_audit_writes_out(setting: str) -> None:
    problem = make_problem(samples=4, edges=EDGES)
    problem.ce_weight = torch.zeros(POSITIONS)
    tail = tail_of(setting, problem)
    logq = torch.log_softmax(problem.hidden.detach() @ problem.weight.detach()[:VOCABULARY].T, dim=1)
    target = dense_target(problem.targets, slice(0, POSITIONS), logq, tail)
    torch.testing.assert_close(target.sum(1), torch.ones(POSITIONS, dtype=torch.float64))
    expected = (problem.divergence_weight[:, None] * (logq.exp() - target)) @ problem.weight.detach()[:VOCABULARY]
    torch.testing.assert_close(grads(problem, tail=tail)[0], expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "t"), CASES)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient_with_blocks(
    divergence: str, t: float | None, temperature: float
) -> None:
    problem = make_problem()
    teacher = torch.log_softmax(problem.hidden.detach() @ problem.weight.detach()[:VOCABULARY].T, dim=1)
    problem.targets = sparse(teacher, 5, 0, edges=EDGES)
    problem.ce_weight = torch.zeros(POSITIONS)
    options = {"divergence": divergence, "t": t, "temperature": temperature}
    assert fused(problem, **options).divergence_M.abs().max() < 1e-14
    assert all(grad.abs().max() < 1e-14 for grad in grads(problem, **options))


def test_blocks_of_one_token_are_the_full_divergence_and_fewer_blocks_bound_it_from_below() -> None:
    problem = make_problem(samples=0)
    values = []
    for edges in ((0, VOCABULARY), (0, 9, VOCABULARY), EDGES, tuple(range(VOCABULARY + 1))):
        problem.targets = sparse(problem.teacher, 5, 0, edges=edges)
        values.append(fused(problem, tail=Tail(by_block=True)).divergence_M)
    logq = torch.log_softmax(problem.hidden @ problem.weight[:VOCABULARY].T, dim=1)
    full_M = (problem.teacher.exp() * (problem.teacher - logq)).sum(1)
    torch.testing.assert_close(values[-1], full_M.detach())
    assert all((fewer <= more + 1e-12).all() for fewer, more in pairwise(values))
    problem.targets = sparse(problem.teacher, 5, 0)
    torch.testing.assert_close(fused(problem).divergence_M, values[0])


@pytest.mark.parametrize(("divergence", "t"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_that_the_support_fills_and_one_where_the_student_has_almost_nothing_are_safe(
    dtype: torch.dtype, divergence: str, t: float | None
) -> None:
    problem = make_problem(samples=0, dtype=dtype)
    with torch.no_grad():  # one direction of the hidden states lowers block 3 by 120 nats: exp of it is 0 in float32
        problem.hidden[:, 0] = 1.0
        problem.weight[:, 0] = 0.0
        problem.weight[9:16, 0] = -120.0
    teacher = problem.teacher.clone()
    teacher[:, 0:2] += 9  # so that the support holds them, and with them the whole first block
    problem.targets = sparse(torch.log_softmax(teacher, 1), 5, 0, edges=EDGES)
    assert problem.targets.log_blocks[:, 0].isneginf().all() and problem.targets.log_blocks[:, 3].isfinite().all()
    tolerance = 1e-9 if dtype == torch.float64 else 5e-5
    check_against_reference(problem, divergence, t, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("setting", ["blocks", "mixed", "adaptive", "pooled"])
def test_positions_without_a_tail_are_safe(setting: str) -> None:
    problem = make_problem(slots=VOCABULARY, samples=3, edges=EDGES)
    assert problem.targets.log_tail.isneginf().all() and problem.targets.log_blocks.isneginf().all()
    check_against_reference(problem, "forward_kl", None, 1.0, tail_of(setting, problem))


def test_lambda_rises_from_nothing_to_all_as_the_student_leaves_the_teachers_tail() -> None:
    problem = make_problem(edges=EDGES)
    teacher = torch.log_softmax(problem.hidden.detach() @ problem.weight.detach()[:VOCABULARY].T, dim=1)
    generator = torch.Generator().manual_seed(1)
    problem.targets = sparse(teacher, 5, 8, generator, EDGES)
    near = fused(problem, tail=Tail(True, None)).sample_weight_M
    with torch.no_grad():
        problem.weight.mul_(-6)
    far = fused(problem, tail=Tail(True, None)).sample_weight_M
    assert near.mean() < 0.3 < 0.6 < far.mean() and (near >= 0).all() and (far <= 1).all()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_pooled_tail_has_the_loss_of_the_mixed_one_and_says_how_far_its_ends_are_apart(weight: float) -> None:
    problem = make_problem(samples=3, edges=EDGES)
    problem.ce_weight = torch.zeros(POSITIONS)
    pooled = fused(problem, tail=Tail(True, weight, pooled=True), chunk_positions=2)
    mixed = fused(problem, tail=Tail(True, weight or 1e-30))
    torch.testing.assert_close(pooled.divergence_M, mixed.divergence_M)
    hidden = problem.hidden.detach()
    problem.hidden = torch.ones_like(hidden).requires_grad_()  # then the head's gradient is the sum over positions
    problem.weight = problem.weight.detach().requires_grad_()
    problem.head = replace(problem.head, weight_VD=problem.weight)
    ends = [grads(problem, tail=Tail(True, end, pooled=True))[1][:VOCABULARY, 0] for end in (0.0, 1.0)]
    torch.testing.assert_close(fused(problem, tail=Tail(True, 0.0, pooled=True)).tail_error_V, ends[0] - ends[1])
    for other in (Tail(True), Tail(True, 0.5), Tail(True, None)):
        assert fused(problem, tail=other).tail_error_V.shape == (0,) and fused(problem, tail=other).tail_noise == 0


def test_the_noise_is_what_draws_alone_make_of_the_error() -> None:
    problem = make_problem(edges=EDGES)
    found = []
    for seed in range(400):
        problem.targets = sparse(problem.teacher, 5, 4, torch.Generator().manual_seed(seed), EDGES)
        output = fused(problem, tail=Tail(True, 0.0, pooled=True))
        found.append(output.tail_error_V)
    errors = torch.stack(found)
    variance = (errors - errors.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(output.tail_noise, variance, rtol=0.1, atol=0)


def test_a_tail_that_the_targets_or_the_divergence_cannot_serve_is_refused() -> None:
    plain, blocks = make_problem(samples=0), make_problem(samples=0, edges=EDGES)
    problem = make_problem(samples=2)
    for lacking, tail, said in (
        (plain, Tail(by_block=True), "by blocks"),
        (blocks, Tail(True, 0.5), "tail samples"),
        (problem, Tail(False, None), "p\\(v \\| tail\\)²"),
        (problem, Tail(False, 0.0, pooled=True), "p\\(v \\| tail\\)²"),
        (blocks, Tail(True, 0.0, pooled=True), "tail samples"),
    ):
        with pytest.raises(ValueError, match=said):
            fused(lacking, tail=tail)
    for options in ({"divergence": "reverse_kl"}, {"temperature": 2.0}):
        with pytest.raises(ValueError, match="forward KL at temperature 1"):
            fused(problem, tail=Tail(sample_weight=1.0), **options)
        with pytest.raises(ValueError, match="forward KL at temperature 1"):
            fused(make_problem(samples=2, edges=EDGES), tail=Tail(True, 0.0, pooled=True), **options)


def test_the_default_is_pooled_where_draws_serve_and_the_blocks_where_they_do_not() -> None:
    assert choose_tail("auto", Kept(8, 32), True) == choose_tail("pooled", Kept(8, 32), True)
    assert choose_tail("auto", Kept(8, 32), False) == choose_tail("auto", Kept(0, 32), True) == Tail(by_block=True)
    assert choose_tail("auto", Kept(8, 0), True) == Tail(sample_weight=1.0)
    assert choose_tail("auto", Kept(8, 0), False) == choose_tail("auto", Kept(0, 0), True) == Tail()


def test_unless_told_the_loss_takes_the_default_tail_of_what_is_kept() -> None:
    problem = make_problem(samples=3, edges=EDGES)
    kept = Kept(3, len(EDGES) - 1)
    for divergence, t in CASES:
        tail = choose_tail("auto", kept, divergence == "forward_kl")
        found, expected = fused(problem, divergence, t), fused(problem, divergence, t, tail=tail)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_unused_slots_change_nothing_with_blocks() -> None:
    problem = make_problem(slots=3, samples=2, edges=EDGES)
    plain = grads(problem, tail=Tail(True, None))
    targets: Targets[torch.Tensor] = problem.targets
    problem.targets = replace(
        targets,
        ids=torch.cat([targets.ids, targets.ids[:, :1].expand(-1, 4)], dim=1),
        logp=torch.cat([targets.logp, torch.full((POSITIONS, 4), -torch.inf)], dim=1),
    )
    torch.testing.assert_close(grads(problem, tail=Tail(True, None)), plain)
