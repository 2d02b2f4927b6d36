"""The angle between a student's gradient from a stored target and from the whole distribution.

    head      Σ (q − p) hᵀ over a group of positions, against the same with p̂: [X, D], weighted by column
    hidden    (q − p) W at every position, all of them as one vector: [N, D]

Groups of 64 need no [X, D]: ⟨A, B⟩ = Σ_ij (a_i · b_j)(h_i · h_j). Those of a chunk and larger are summed.

Shapes: C positions of a chunk, X columns of the vocabulary, D hidden size.
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from trainer.methods.pooled import PooledWeight

CHUNK = 512
SMALL_GROUP = 64


class HeadAngles:
    """Takes chunks of 512 positions in turn; the means are over groups of 64 and of the sizes given."""

    def __init__(self, groups: list[int], weight_X: Tensor) -> None:
        """Groups are multiples of 512 positions; weights are those of the columns."""
        self.root_X = weight_X.sqrt()
        self.found: dict[int, list[float]] = {size: [] for size in [SMALL_GROUP, *groups]}
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}
        self._chunks = 0

    def add(self, full_CX: Tensor, full_XD: Tensor, missing_CX: Tensor, hidden_CD: Tensor) -> None:
        """Take the next chunk: q − p and its gradient, times the root of the weights; p − p̂, which is overwritten."""
        missing_CX *= self.root_X
        self.found[SMALL_GROUP].extend(_small_groups(full_CX, missing_CX, hidden_CD))
        missing_XD = missing_CX.T @ hidden_CD
        self._chunks += 1
        for size, angles in self.found.items():
            if size < CHUNK:
                continue
            if size == CHUNK:
                pair = (full_XD, missing_XD)
            elif size in self._sums:
                pair = tuple(
                    total.add_(new) for total, new in zip(self._sums[size], (full_XD, missing_XD), strict=True)
                )  # type: ignore[assignment]
            else:
                pair = self._sums[size] = (full_XD.clone(), missing_XD.clone())
            if self._chunks * CHUNK % size == 0:
                angles.append(angle(*pair))
                self._sums.pop(size, None)

    def means(self) -> dict[int, float]:
        """Return the mean angle in degrees by group size."""
        return {size: sum(angles) / len(angles) for size, angles in self.found.items() if angles}


def _small_groups(full_CX: Tensor, missing_CX: Tensor, hidden_CD: Tensor) -> list[float]:
    found = []
    for start in range(0, len(full_CX), SMALL_GROUP):
        rows = slice(start, start + SMALL_GROUP)
        full, missing, states = full_CX[rows], missing_CX[rows], (hidden_CD[rows] @ hidden_CD[rows].T).double()
        pairs = ((full, full), (full, missing), (missing, missing))
        found.append(_degrees(*(float(((a @ b.T).double() * states).sum()) for a, b in pairs)))
    return found


def angle(full: Tensor, missing: Tensor) -> float:
    """The angle in degrees between a gradient and its sum with an error; products in float64 of float32 rows."""
    pairs = ((full, full), (full, missing), (missing, missing))
    return _degrees(*(float((a * b).sum(1).double().sum()) for a, b in pairs))


def _degrees(full: float, across: float, missing: float) -> float:
    # By sine and cosine, so that small angles keep their digits.
    aside = max(0.0, missing - across * across / full)
    return math.degrees(math.atan2(math.sqrt(aside), (full + across) / math.sqrt(full)))


class PooledAngles:
    """Angles of a target whose λ is one for a group: that which the trainer's rule comes to over groups of the size.

    The error is linear in λ, so each group keeps the products of the full gradient and the errors at λ = 0 and 1.
    """

    def __init__(self, groups: list[int], weight_X: Tensor) -> None:
        """Groups are multiples of 512 positions; weights are those of the columns."""
        self.root_X = weight_X.sqrt()
        self.groups: dict[int, list[_Group]] = {size: [] for size in [SMALL_GROUP, *groups]}
        self._open: dict[int, _Group] = {}

    def add(
        self, full_CX: Tensor, full_XD: Tensor, missing: tuple[Tensor, Tensor], noise_C: Tensor, hidden_CD: Tensor
    ) -> None:
        """Take the next chunk: q − p and its gradient, times the root of the weights; p − p̂ at λ = 0 and 1."""
        errors = [(missing_CX * self.root_X) for missing_CX in missing]
        for start in range(0, len(full_CX), SMALL_GROUP):
            rows = slice(start, start + SMALL_GROUP)
            states = (hidden_CD[rows] @ hidden_CD[rows].T).double()
            rows_X = [full_CX[rows], *(error[rows] for error in errors)]
            products = [[float(((a @ b.T).double() * states).sum()) for b in rows_X] for a in rows_X]
            difference_X = (errors[0][rows] - errors[1][rows]).sum(0)
            group = _Group([], difference_X, float(noise_C[rows].sum()), len(states))
            self.groups[SMALL_GROUP].append(group.closed(products))
        gradients = [full_XD, *(error.T @ hidden_CD for error in errors)]
        whole = _Group(gradients, (errors[0] - errors[1]).sum(0), float(noise_C.sum()), len(full_CX))
        for size, found in self.groups.items():
            if size < CHUNK:
                continue
            group = whole if size not in self._open else self._open.pop(size).with_(whole)
            if group.positions < size:
                self._open[size] = group
                continue
            pairs = [[float((a * b).sum(1).double().sum()) for b in group.gradients] for a in group.gradients]
            found.append(group.closed(pairs))

    def weight(self, size: int) -> float:
        """Return the λ of groups of a size."""
        pooled = PooledWeight()
        groups = self.groups[size]
        pooled.update(
            sum(float(group.difference_X.square().sum()) for group in groups), sum(group.noise for group in groups)
        )
        return pooled.weight

    def means(self) -> dict[int, float]:
        """Return the mean angle in degrees by group size."""
        found = {}
        for size, groups in self.groups.items():
            if groups:
                weight = self.weight(size)
                mix = (0.0, 1 - weight, weight)
                found[size] = sum(_degrees_of(group.products, mix) for group in groups) / len(groups)
        return found


@dataclass(frozen=True)
class _Group:
    gradients: list[Tensor]
    """Of the whole distribution, and the errors at λ = 0 and 1, each [X, D]."""
    difference_X: Tensor
    noise: float
    positions: int
    products: tuple[tuple[float, ...], ...] = ()

    def with_(self, other: "_Group") -> "_Group":
        gradients = [a + b for a, b in zip(self.gradients, other.gradients, strict=True)]
        difference_X = self.difference_X + other.difference_X
        return _Group(gradients, difference_X, self.noise + other.noise, self.positions + other.positions)

    def closed(self, products: list[list[float]]) -> "_Group":
        return replace(self, gradients=[], products=tuple(map(tuple, products)))


def _degrees_of(products: tuple[tuple[float, ...], ...], mix: tuple[float, ...]) -> float:
    """The angle between the first vector and its sum with a mixture of all."""
    crossed = [sum(weight * value for weight, value in zip(mix, row, strict=True)) for row in products]
    return _degrees(products[0][0], crossed[0], sum(a * b for a, b in zip(mix, crossed, strict=True)))
