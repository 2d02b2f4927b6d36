"""Random distributions over outcomes."""

import torch


def random_outcomes(seed: int, rows: int = 50, slots: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(3 * torch.randn(rows, slots + 1, generator=generator, dtype=torch.float64), dim=1)
