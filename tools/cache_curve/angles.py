"""The angle between a student's gradient from a stored target and from the whole distribution.

    head      Σ (q − p) hᵀ over a group of positions, against the same with p̂: [X, D], weighted by column
    hidden    (q − p) W at every position, all of them as one vector: [N, D]

Groups of 64 need no [X, D]: ⟨A, B⟩ = Σ_ij (a_i · b_j)(h_i · h_j). Those of a chunk and larger are summed.

Shapes: C positions of a chunk, X columns of the vocabulary, D hidden size.
"""

import math

from torch import Tensor

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
