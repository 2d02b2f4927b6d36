"""Small problems for the fused loss: a student, a teacher's targets, and the same loss by the book beside it."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cache_builder.models.lm_head import Head
from cache_builder.targets.sparse import Targets
from cache_builder.targets.tail import Tail
from trainer.loss.fused import LossOutput, distillation_loss
from trainer.loss.reference import reference_loss

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


def make_problem(
    seed: int = 0,
    *,
    slots: int = 5,
    samples: int = 3,
    edges: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
) -> Any:
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
        targets=sparse(teacher, slots, samples, generator, edges),
        gold=gold,
        divergence_weight=divergence_weight,
        ce_weight=ce_weight,
    )


def sparse(
    teacher: Tensor,
    slots: int,
    samples: int,
    generator: torch.Generator | None = None,
    edges: tuple[int, ...] = (),
) -> Targets[Tensor]:
    """Keep the top slots of dense log-probabilities, draw from the rest, and sum it by blocks."""
    logp, ids = teacher.topk(slots, dim=1)
    rest = teacher.exp().scatter(1, ids, 0.0)
    empty = rest.sum(1) == 0
    drawable = torch.where(empty[:, None], torch.zeros_like(rest).scatter_(1, ids[:, :1], 1.0), rest)
    drawn = torch.multinomial(drawable, samples, replacement=True, generator=generator) if samples else ids[:, :0]
    entropy = -(teacher.exp() * teacher).nan_to_num(0.0).sum(1)
    targets = Targets(ids, logp, drawn, rest.sum(1).log(), logp[:, :1].sum(1), entropy, edges=edges)
    if edges:
        targets.log_blocks = torch.stack([rest[:, start:end].sum(1) for start, end in pairwise(edges)], 1).log()
        share = rest / rest.sum(1, keepdim=True)
        targets.log_collision = share.square().sum(1, keepdim=True).log().nan_to_num(0.0)
    return targets


def reference(
    problem: Any, divergence: str, t: float | None, temperature: float = 1.0, tail: Tail | None = None
) -> LossOutput:
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
        tail=tail,
    )


def fused(problem: Any, divergence: str = "forward_kl", t: float | None = None, **options: Any) -> LossOutput:
    """The loss that is tested."""
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


def check_against_reference(
    problem: Any,
    divergence: str,
    t: float | None,
    temperature: float = 1.0,
    tail: Tail | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-12,
) -> None:
    """Value per position, λ, what moves it, total, and both gradients."""
    inputs = [problem.hidden, problem.weight]
    if problem.head.bias_V is not None:
        inputs.append(problem.head.bias_V)
    expected, divergence_M, ce_M, sample_weight_M, error_V, noise = reference(problem, divergence, t, temperature, tail)
    expected_grads = torch.autograd.grad(expected, inputs)
    output = fused(problem, divergence, t, temperature=temperature, tail=tail, chunk_positions=3)
    grads = torch.autograd.grad(output.loss, inputs)
    torch.testing.assert_close(output.divergence_M.double(), divergence_M.detach(), rtol=rtol, atol=atol)
    torch.testing.assert_close(output.ce_M.double(), ce_M.detach(), rtol=rtol, atol=atol)
    torch.testing.assert_close(output.sample_weight_M.double(), sample_weight_M, rtol=rtol, atol=atol)
    torch.testing.assert_close(output.loss.double(), expected.detach(), rtol=rtol, atol=atol)
    torch.testing.assert_close(output.tail_error_V.double(), error_V, rtol=rtol, atol=atol)
    torch.testing.assert_close(output.tail_noise.double(), noise, rtol=rtol, atol=atol)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), expected_grad.double(), rtol=rtol, atol=atol)
