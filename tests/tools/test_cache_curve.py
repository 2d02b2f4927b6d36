"""The curve's targets are those that the loss trains towards, and its angles those of the gradients written out."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cache_builder.models.lm_head import Head
from cache_builder.targets.sparse import Targets
from tools.cache_curve.angles import HeadAngles, PooledAngles, angle
from tools.cache_curve.facts import DRAWS, Facts, block_of_id, choose_columns, read
from tools.cache_curve.stored import Kept, Target, keep, missing, noise
from trainer.loss.fused import distillation_loss

POSITIONS, VOCABULARY, WIDTH = 64, 640, 24


def distributions(seed: int, scale: float = 2.0) -> Tensor:
    return (scale * torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(seed))).softmax(1)


def error(target: Target, p: Tensor, q: Tensor, weight: float = 0.0) -> tuple[Tensor, Kept, Facts]:
    """p − p̂ over the vocabulary, and what it was made of."""
    block_V = block_of_id(target.edges, target.blocks, p.mean(0))
    maps = {target.map: one_hot(block_V, target.blocks).float()}
    uniforms = torch.rand(len(p), 2 * DRAWS, generator=torch.Generator().manual_seed(9))
    everywhere, label = torch.arange(VOCABULARY), torch.zeros(len(p), dtype=torch.int64)
    teacher = read(p.clone(), label, maps, everywhere, uniforms_CS=uniforms[:, DRAWS:])
    student = read(q.clone(), label, maps, everywhere, teacher=teacher)
    kept = keep(target, teacher, block_V, uniforms[:, :DRAWS])
    found = missing(target, kept, student, everywhere, everywhere, p, block_V, weight)
    return found, kept, teacher


@pytest.mark.parametrize(
    "target", [Target(16), Target(16, "samples", 8), Target(4, "samples", 16)], ids=lambda t: t.label
)
def test_a_target_that_the_fused_loss_knows_has_its_gradient(target: Target) -> None:
    hidden = torch.randn(POSITIONS, WIDTH, generator=torch.Generator().manual_seed(3)).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(4)) / 3
    p, q = distributions(1), (hidden @ weight.T).softmax(1).detach()
    found, kept, facts = error(target, p, q)
    draws = kept.draws_CS if target.tail == "samples" else kept.draws_CS[:, :0]
    targets = Targets(kept.ids_CK, kept.logp_CK, draws, kept.tail_C1[:, 0].log(), facts.gold_C, facts.entropy_C)
    ones, label = torch.ones(POSITIONS), torch.zeros(POSITIONS, dtype=torch.int64)
    distillation_loss(hidden, Head(weight, None, VOCABULARY), targets, label, ones, 0 * ones).loss.backward()
    torch.testing.assert_close((q - p + found) @ weight, hidden.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edges", ["log", "equal", "mass", "frequency"])
def test_every_block_of_the_fill_has_the_teacher_s_mass(edges: str) -> None:
    p, q = distributions(1), distributions(2)
    target = Target(16, blocks=4, edges=edges, block_steps=64)  # type: ignore[arg-type]
    found, _, _ = error(target, p, q)
    block_V = block_of_id(edges, 4, p.mean(0))
    assert block_V.bincount(minlength=4).min() > 0
    outside = found.scatter(1, p.topk(16, dim=1).indices, 0.0)
    sums = outside @ one_hot(block_V, 4).float()
    assert sums.abs().max() < 0.01 < outside.abs().sum(1).min()


def test_where_student_and_teacher_agree_no_weight_goes_to_the_samples() -> None:
    p = distributions(1)
    mixed, _, _ = error(Target(16, "adaptive", 8), p, p)
    samples, _, _ = error(Target(16, "samples", 8), p, p)
    assert mixed.norm() < 0.25 * samples.norm()


def pooled_angles(p: Tensor, q: Tensor) -> tuple[PooledAngles, Tensor, list[Tensor]]:
    """Of 512 positions that are eight times the 64 given; the full gradient, and the errors at λ = 0 and 1."""
    target = Target(16, "pooled", 8)
    p, q = p.repeat(8, 1), q.repeat(8, 1)
    (one, kept, _), (other, _, _) = (error(target, p, q, weight) for weight in (0.0, 1.0))
    hidden = torch.randn(len(p), 4, generator=torch.Generator().manual_seed(5))
    angles = PooledAngles([512], torch.ones(VOCABULARY))
    full = q - p
    angles.add(full, full.T @ hidden, (one, other), noise(target, kept), hidden)
    return angles, hidden, [full, one, other]


def test_the_pooled_weight_is_little_where_student_and_teacher_agree_and_rises_with_the_group() -> None:
    p = distributions(1)
    near, far = pooled_angles(p, distributions(1, scale=2.02))[0], pooled_angles(p, distributions(2))[0]
    assert near.weight(64) < 0.1 and near.weight(512) < 0.3
    assert 0.2 < far.weight(64) < far.weight(512) - 0.2 < 0.8


def test_pooled_angles_are_those_of_the_mixed_gradients_written_out() -> None:
    angles, hidden, (full, one, other) = pooled_angles(distributions(1), distributions(2))
    for size, found in angles.means().items():
        weight, expected = angles.weight(size), []
        for start in range(0, 512, size):
            rows = slice(start, start + size)
            mixed = full + (1 - weight) * one + weight * other
            a, b = ((gradient[rows].T @ hidden[rows]).flatten().double() for gradient in (full, mixed))
            expected.append(math.degrees(math.acos(torch.nn.functional.cosine_similarity(a, b, 0))))
        assert found == pytest.approx(sum(expected) / len(expected), abs=1e-3)


def test_slots_beyond_the_top_p_are_in_the_tail() -> None:
    p = distributions(1, scale=4.0)
    _, kept, _ = error(Target(16, top_p=0.5), p, p)
    mass = p.topk(16, dim=1).values
    expected = (mass * (mass.cumsum(1) - mass >= 0.5)).sum(1) + 1 - mass.sum(1)
    torch.testing.assert_close(kept.tail_C1[:, 0], expected, rtol=5e-3, atol=1e-5)


def test_angles_by_group_are_those_of_the_gradients_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    full, missed = (torch.randn(1024, 40, generator=generator) for _ in range(2))
    hidden = torch.randn(1024, 8, generator=generator)
    angles = HeadAngles([512, 1024], torch.ones(40))
    for chunk in (slice(0, 512), slice(512, 1024)):
        angles.add(full[chunk], full[chunk].T @ hidden[chunk], missed[chunk].clone(), hidden[chunk])
    for size, found in angles.means().items():
        expected = []
        for start in range(0, 1024, size):
            rows = slice(start, start + size)
            a, b = (gradient[rows].T @ hidden[rows] for gradient in (full, full + missed))
            cosine = torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), 0)
            expected.append(math.degrees(math.acos(cosine)))
        assert found == pytest.approx(sum(expected) / len(expected), abs=1e-3)


def test_columns_of_a_large_vocabulary_stand_for_all_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    mass = torch.arange(1, 40_001).float() ** -1
    full, missed = (torch.randn(40_000, 4, generator=generator) * mass[:, None] for _ in range(2))
    columns, weight = choose_columns(mass)
    assert len(columns) < 13_000 and float(weight.sum()) == pytest.approx(40_000, rel=1e-4)
    root = weight.sqrt()[:, None]
    assert angle(full[columns] * root, missed[columns] * root) == pytest.approx(angle(full, missed), rel=0.02)
