"""A model in eval mode while it is judged, and in the mode that it had when that has ended, however it ends.

A model that a failure leaves in eval mode trains on without dropout, and says nothing of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into eval mode inside `with`."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
