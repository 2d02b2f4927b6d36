"""What is read once off a model's distributions, so that every target can be made of it without the vocabulary.

    softmax(hidden @ headᵀ) ─▶ at the teacher's top 128 │ outside them: mass and Σ² by blocks │ at 50 draws from there
                            ─▶ on the columns that gradients are compared on

The same is read of teacher and student. A target with fewer slots takes those from 128 down to its own into its tail,
so that no tail is a difference of large numbers.

Columns: all ids of a small vocabulary; of a large one the 8,192 ids with the most mass, and every eighth of the others,
which counts eight times in a product of gradients (an unbiased estimate; the rows of rare ids hold little of it).

Shapes: C positions of a chunk, V vocabulary, X columns, T slots, S draws, G blocks.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SLOTS, DRAWS = 128, 50
FIRST_EDGE = 256
FREQUENT_IDS, RARE_STRIDE = 8192, 8


@dataclass(frozen=True)
class Facts:
    """Of one model at a chunk's positions."""

    ids_CT: Tensor
    """The teacher's, by falling probability."""
    at_ids_CT: Tensor
    mass_CG: dict[str, Tensor]
    """By map: outside the slots, by blocks of ids."""
    squares_CG: dict[str, Tensor]
    draws_CS: Tensor
    """Ids drawn from the teacher outside the slots."""
    at_draws_CS: Tensor
    columns_CX: Tensor
    gold_C: Tensor
    entropy_C: Tensor


def block_of_id(edges: str, count: int, mean_tail_V: Tensor) -> Tensor:
    """Return the block [V] of every id.

    log: edges 0, then evenly spaced in the logarithm from 256 to V. equal: blocks of one width. mass: blocks of ids
    that hold as much of the teacher's mean tail each. frequency: any ids, as `log`, by their rank in that mean.
    """
    vocabulary = len(mean_tail_V)
    if edges == "mass":
        share_V = mean_tail_V.double().cumsum(0) / mean_tail_V.double().sum()
        return (share_V * count).long().clamp_(max=count - 1)
    if edges == "equal":
        return torch.arange(vocabulary) * count // vocabulary
    inner = torch.logspace(math.log10(FIRST_EDGE), math.log10(vocabulary), count)[:-1].round().long()
    block_of_rank = torch.bucketize(torch.arange(vocabulary), inner, right=True)
    if edges == "log":
        return block_of_rank
    ranks = torch.empty(vocabulary, dtype=torch.int64)
    ranks[mean_tail_V.argsort(descending=True)] = torch.arange(vocabulary)
    return block_of_rank[ranks]


def choose_columns(mean_V: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids [X], rising, and how often each counts [X]."""
    vocabulary = len(mean_V)
    if vocabulary <= FREQUENT_IDS * 2:
        return torch.arange(vocabulary), torch.ones(vocabulary)
    weight_V = torch.zeros(vocabulary)
    by_mass = mean_V.argsort(descending=True)
    rare = by_mass[FREQUENT_IDS:]
    weight_V[by_mass[:FREQUENT_IDS]] = 1.0
    kept = rare[RARE_STRIDE // 2 :: RARE_STRIDE]
    weight_V[kept] = len(rare) / len(kept)
    columns_X = weight_V.nonzero()[:, 0]
    return columns_X, weight_V[columns_X]


def read(
    p_CV: Tensor,
    label_C: Tensor,
    maps_VG: dict[str, Tensor],
    columns_X: Tensor,
    *,
    teacher: Facts | None = None,
    uniforms_CS: Tensor | None = None,
) -> Facts:
    """Read a chunk; a student's on its teacher's slots and draws, a teacher's with uniform numbers to draw with.

    `maps_VG` are the maps of ids to blocks, [V, G] of ones and zeros. `p_CV` is overwritten.
    """
    columns_CX, gold_C = p_CV[:, columns_X], p_CV.gather(1, label_C[:, None])[:, 0].log()
    entropy_C = -torch.special.xlogy(p_CV, p_CV).sum(1)
    at_ids_CT, ids_CT = p_CV.topk(SLOTS, dim=1) if teacher is None else (p_CV.gather(1, teacher.ids_CT), teacher.ids_CT)
    rest_CV = p_CV.scatter_(1, ids_CT, 0.0)
    if teacher is None:
        assert uniforms_CS is not None
        cumulative_CV = rest_CV.double().cumsum(1)
        goal_CS = uniforms_CS.double() * cumulative_CV[:, -1:]
        draws_CS = torch.searchsorted(cumulative_CV, goal_CS, right=True).clamp_(max=p_CV.shape[1] - 1)
    else:
        draws_CS = teacher.draws_CS
    mass_CG = _by_map(rest_CV, maps_VG)
    at_draws_CS = rest_CV.gather(1, draws_CS)
    squares_CG = _by_map(rest_CV.square_(), maps_VG)
    return Facts(ids_CT, at_ids_CT, mass_CG, squares_CG, draws_CS, at_draws_CS, columns_CX, gold_C, entropy_C)


def _by_map(values_CV: Tensor, maps_VG: dict[str, Tensor]) -> dict[str, Tensor]:
    sums_CG = values_CV @ torch.cat(list(maps_VG.values()), dim=1)
    return dict(zip(maps_VG, sums_CG.split([one_hot.shape[1] for one_hot in maps_VG.values()], dim=1), strict=True))


def head_of(facts: Facts, rows: int, columns_CX: Tensor) -> Facts:
    """Return the first positions of a chunk, with other columns."""

    def cut(by_map: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[:rows] for name, values in by_map.items()}

    return Facts(
        facts.ids_CT[:rows],
        facts.at_ids_CT[:rows],
        cut(facts.mass_CG),
        cut(facts.squares_CG),
        facts.draws_CS[:rows],
        facts.at_draws_CS[:rows],
        columns_CX,
        facts.gold_C[:rows],
        facts.entropy_C[:rows],
    )
