"""The fused loss where numbers run out, in every precision and chunk, and what it never holds in memory."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cache_builder.models import lm_head as head_module
from cache_builder.models.lm_head import Head
from tests.support.loss_problems import (
    CASES,
    POSITIONS,
    ROWS,
    VOCABULARY,
    check_against_reference,
    fused,
    make_problem,
    reference,
    sparse,
)
from trainer.loss import fused as losses
from trainer.loss.fused import distillation_loss


@pytest.mark.parametrize("log_tail", [-30.0, -80.0, -torch.inf])
@pytest.mark.parametrize(("divergence", "t"), [("forward_kl", None), ("taid", 0.3), ("reverse_kl", None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vanishing_teacher_tail_is_exact_and_finite(dtype, divergence, t, log_tail):
    problem = make_problem(slots=5, samples=2, dtype=dtype)
    support = torch.log_softmax(problem.targets.logp, dim=1)
    tail = torch.full((POSITIONS,), log_tail, dtype=torch.float64)
    problem.targets = replace(problem.targets, logp=support, log_tail=tail, entropy=-(support.exp() * support).sum(1))
    if log_tail == -torch.inf and divergence == "reverse_kl":  # infinite by the book: only finiteness is promised
        output = fused(problem, divergence, t)
        grads = torch.autograd.grad(output.loss, [problem.hidden, problem.weight])
        assert output.divergence_M.isfinite().all()
        assert all(grad.isfinite().all() for grad in grads)
    else:
        tolerance = 1e-9 if dtype == torch.float64 else 2e-5
        check_against_reference(problem, divergence, t, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("divergence", "t"), CASES)
@pytest.mark.parametrize("samples", [0, 2])
def test_a_student_tail_of_a_millionth_millionth_is_exact_in_float32(samples, divergence, t):
    """log1p(−Σ) forms are off by 1 % here, or NaN (measured); a masked logsumexp is not."""
    problem = make_problem(slots=5, samples=samples, dtype=torch.float32)
    with torch.no_grad():  # one direction of the hidden states lifts exactly the support, by 28 nats
        problem.hidden[:, 0] = 1.0
        problem.weight[:, 0] = 0.0
        ids = problem.targets.ids[0]
        problem.weight[ids, 0] = 28.0
    problem.targets = replace(
        problem.targets,
        ids=ids.expand(POSITIONS, -1).contiguous(),
        samples=torch.full((POSITIONS, samples), next(token for token in range(VOCABULARY) if token not in ids)),
    )
    q = torch.softmax(problem.hidden.double() @ problem.weight.double()[:VOCABULARY].T, dim=1)
    outside = 1 - q.gather(1, problem.targets.ids).sum(1)
    assert outside.max() < 1e-9
    check_against_reference(problem, divergence, t, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_with_bias_scale_and_softcap_has_exact_gradients(dtype):
    problem = make_problem(dtype=dtype)
    bias = torch.linspace(-1, 1, ROWS, dtype=dtype).requires_grad_()
    problem.head = Head(problem.weight, bias, VOCABULARY, scale=0.7, softcap=3.0)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    for divergence, t in CASES:
        check_against_reference(problem, divergence, t, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk_positions", [1, 2, 7, 100])
def test_the_chunk_size_changes_nothing(chunk_positions):
    problem = make_problem()
    whole, chunked = fused(problem), fused(problem, chunk_positions=chunk_positions)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(
        torch.autograd.grad(chunked.loss, problem.weight), torch.autograd.grad(whole.loss, problem.weight)
    )


def test_the_gradient_scales_with_what_comes_back_and_only_once():
    problem = make_problem()
    once = torch.autograd.grad(fused(problem).loss, [problem.hidden, problem.weight])
    thrice = torch.autograd.grad(fused(problem).loss * 3, [problem.hidden, problem.weight])
    torch.testing.assert_close(thrice, tuple(3 * grad for grad in once))
    loss = fused(problem).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_under_no_grad_the_values_are_the_same():
    problem = make_problem()
    with torch.no_grad():
        output = fused(problem)
    assert not output.loss.requires_grad
    torch.testing.assert_close(output, fused(problem))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    """Only the returned gradients are rounded, to the inputs' dtype."""
    problem = make_problem(dtype=dtype)
    expected, divergence_M, *_ = reference(problem, "forward_kl", None)
    expected_grads = torch.autograd.grad(expected, [problem.hidden, problem.weight])
    output = fused(problem)
    torch.testing.assert_close(output.divergence_M.double(), divergence_M.detach(), rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(output.loss, [problem.hidden, problem.weight])
    rounding = torch.finfo(dtype).eps
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), expected_grad.double(), rtol=rounding, atol=1e-6)


def test_a_loss_scaler_brings_float16_gradients_into_range():
    """The gradients are made in the forward pass, before the scaler's factor is known."""
    problem = make_problem(dtype=torch.float16)
    problem.divergence_weight, problem.ce_weight = problem.divergence_weight * 1e-7, problem.ce_weight * 1e-7
    expected = torch.autograd.grad(reference(problem, "forward_kl", None)[0] * 65536, problem.hidden)[0]
    scaled = torch.autograd.grad(fused(problem).loss * 65536, problem.hidden)[0]
    torch.testing.assert_close(scaled, expected, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize(("divergence", "t"), CASES)
def test_the_path_of_a_gpu_with_bfloat16_is_right_to_its_rounding(monkeypatch, divergence, t):
    """A CPU has no matmul from bfloat16 to float32, so here it is emulated; the branches around it are the GPU's."""

    def emulated(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        assert left.dtype == right.dtype == torch.bfloat16
        product = left.float() @ right.float()
        return product if out is None else out.copy_(product)

    problem = make_problem(dtype=torch.bfloat16)
    expected, divergence_M, *_ = reference(problem, divergence, t)
    expected_grads = torch.autograd.grad(expected, [problem.hidden, problem.weight])
    monkeypatch.setattr(losses, "compute_weight", lambda head: head.weight_VD.detach()[: head.vocab_size])
    monkeypatch.setattr(losses, "matmul", emulated)
    monkeypatch.setattr(head_module, "matmul", emulated)
    output = fused(problem, divergence, t, chunk_positions=3)
    torch.testing.assert_close(output.divergence_M.double(), divergence_M.detach(), rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(output.loss, [problem.hidden, problem.weight])
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.bfloat16
        error = (grad.double() - expected_grad.double()).norm() / max(expected_grad.double().norm(), 1e-3)
        assert error < 2 * torch.finfo(torch.bfloat16).eps


def test_autocast_does_not_change_the_arithmetic():
    problem = make_problem(dtype=torch.float32)
    plain = fused(problem)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fused(problem), plain, rtol=0, atol=0)


def test_the_error_in_float32_is_no_larger_than_the_ordinary_path_s():
    problem, double = make_problem(dtype=torch.float32), make_problem(dtype=torch.float32)
    double.hidden, double.weight = problem.hidden.detach().double(), problem.weight.detach().double()
    double.hidden.requires_grad_()
    problem.ce_weight = double.ce_weight = torch.zeros(POSITIONS)
    problem.targets = double.targets = sparse(problem.teacher, VOCABULARY, 0)
    exact = torch.autograd.grad(reference(double, "forward_kl", None)[0], double.hidden)[0]
    ours = torch.autograd.grad(fused(problem).loss, problem.hidden)[0]
    logq = torch.log_softmax(problem.hidden @ problem.weight[:VOCABULARY].T, dim=1)
    ordinary = torch.nn.functional.kl_div(logq, problem.teacher.float(), log_target=True, reduction="none").sum(1)
    theirs = torch.autograd.grad((problem.divergence_weight.float() * ordinary).sum(), problem.hidden)[0]
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(("divergence", "t"), CASES)
def test_nothing_larger_than_a_chunk_of_logits_or_the_head_is_ever_made(divergence, t):
    generator = torch.Generator().manual_seed(0)
    positions, vocabulary, chunk = 96, 500, 8
    hidden = torch.randn(positions, 4, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, 4, generator=generator, requires_grad=True)
    teacher = torch.log_softmax(torch.randn(positions, vocabulary, generator=generator), 1)
    targets = sparse(teacher, 5, 2, generator)
    gold, ones = torch.zeros(positions, dtype=torch.int64), torch.ones(positions)
    with LargestTensor() as largest:
        distillation_loss(
            hidden,
            Head(weight, None, vocabulary),
            targets,
            gold,
            ones,
            ones,
            divergence=divergence,
            parameter=t,
            chunk_positions=chunk,
        ).loss.backward()
    assert largest.elements == chunk * vocabulary  # 4,000, twice the head's 2,000; [positions, vocabulary] is 48,000
