"""The fused loss against a plain float64 reference: probabilities, 1 − Σ, autograd; none of the kernel's formulas."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cache_builder.models import lm_head as head_module
from cache_builder.models.lm_head import Head
from cache_builder.targets.divergences import DIVERGENCES
from cache_builder.targets.sparse import Targets
from trainer.loss import fused as losses
from trainer.loss.fused import LossOutput, distillation_loss
from trainer.loss.reference import PLAIN, reference_loss

VOCABULARY, ROWS, HIDDEN, POSITIONS = 23, 25, 6, 7
CASES = [
    ("forward_kl", None),
    ("reverse_kl", None),
    ("taid", 0.0),
    ("taid", 0.3),
    ("taid", 1.0),
    ("jsd", 0.2),
    ("jsd", 0.9),
]


def make_problem(seed: int = 0, *, slots: int = 5, samples: int = 3, dtype: torch.dtype = torch.float64):
    """Random student and teacher over 23 of 25 rows; the teacher's targets, with tail samples that may repeat."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(POSITIONS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(ROWS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    teacher = torch.log_softmax(2 * torch.randn(POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64), 1)
    gold = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    divergence_weight, ce_weight = torch.rand(2, POSITIONS, generator=generator, dtype=torch.float64)
    return SimpleNamespace(
        hidden=hidden,
        weight=weight,
        head=Head(weight, None, VOCABULARY),
        teacher=teacher,
        targets=sparse(teacher, slots, samples, generator),
        gold=gold,
        divergence_weight=divergence_weight,
        ce_weight=ce_weight,
    )


def sparse(teacher: Tensor, slots: int, samples: int, generator: torch.Generator | None = None) -> Targets:
    """Keep the top slots of dense log-probabilities, and draw from the rest."""
    logp, ids = teacher.topk(slots, dim=1)
    rest = teacher.exp().scatter(1, ids, 0.0)
    empty = rest.sum(1) == 0
    drawable = torch.where(empty[:, None], torch.zeros_like(rest).scatter_(1, ids[:, :1], 1.0), rest)
    drawn = torch.multinomial(drawable, samples, replacement=True, generator=generator) if samples else ids[:, :0]
    entropy = -(teacher.exp() * teacher).nan_to_num(0.0).sum(1)
    return Targets(ids, logp, drawn, rest.sum(1).log(), logp[:, :1].sum(1), entropy)


def reference(problem, divergence: str, t: float | None, temperature: float = 1.0) -> LossOutput:
    """The same by the book."""
    return reference_loss(
        problem.hidden,
        problem.head,
        problem.targets,
        problem.gold,
        problem.divergence_weight,
        problem.ce_weight,
        divergence=divergence,
        parameter=t,
        temperature=temperature,
    )


def fused(problem, divergence: str = "forward_kl", t: float | None = None, **options):
    return distillation_loss(
        problem.hidden,
        problem.head,
        problem.targets,
        problem.gold,
        problem.divergence_weight,
        problem.ce_weight,
        divergence=divergence,
        parameter=t,
        **options,
    )


def check_against_reference(problem, divergence: str, t: float | None, temperature: float = 1.0, rtol=1e-9, atol=1e-12):
    """Value per position, total, and both gradients."""
    inputs = [problem.hidden, problem.weight]
    if problem.head.bias_V is not None:
        inputs.append(problem.head.bias_V)
    expected, divergence_M, ce_M, _ = reference(problem, divergence, t, temperature)
    expected_grads = torch.autograd.grad(expected, inputs)
    output = fused(problem, divergence, t, temperature=temperature, chunk_positions=3)
    grads = torch.autograd.grad(output.loss, inputs)
    torch.testing.assert_close(output.divergence_M.double(), divergence_M.detach(), rtol=rtol, atol=atol)
    torch.testing.assert_close(output.ce_M.double(), ce_M.detach(), rtol=rtol, atol=atol)
    torch.testing.assert_close(output.loss.double(), expected.detach(), rtol=rtol, atol=atol)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), expected_grad.double(), rtol=rtol, atol=atol)


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


def test_a_t_without_taid_is_refused():
    problem = make_problem()
    with pytest.raises(ValueError, match="parameter"):
        fused(problem, "forward_kl", 0.5)
    with pytest.raises(ValueError, match="parameter"):
        fused(problem, "taid", None)
