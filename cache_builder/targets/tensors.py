"""Targets as tensors: made here, because the container itself is read where there is no torch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_builder.targets.sparse import Targets


def to_torch(targets: Targets[np.ndarray]) -> Targets[Tensor]:
    """Return the same as tensors on the CPU: int64 and float32, without a copy where the types are these."""

    def tensor(value: Any) -> Tensor:
        return torch.from_numpy(value.astype(np.int64 if value.dtype.kind in "iu" else np.float32, copy=False))

    return targets.each(tensor)


def nothing(positions: int, device: torch.device | str = "cpu") -> Targets[Tensor]:
    """Return targets that say nothing: no support, every token in the tail. Every divergence from them is zero."""
    ids = torch.zeros(positions, 0, dtype=torch.int64, device=device)
    zero = torch.zeros(positions, device=device)
    return Targets(ids, torch.zeros(positions, 0, device=device), ids, zero, zero, zero)
