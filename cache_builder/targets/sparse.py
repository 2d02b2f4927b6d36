"""What one checkpoint says at M positions: one container from capture to the loss, of numpy arrays or of tensors.

    capture ─▶ Targets of arrays ─▶ records ─▶ cache ─▶ Targets of arrays ─▶ to_torch ─▶ Targets of tensors ─▶ loss

Importing this needs no torch, so that a cache can be read without it.

Shapes: M positions, K slots of the support, S tail samples. Log-probabilities are natural logs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar, cast

import numpy as np

Array = TypeVar("Array")
Other = TypeVar("Other")


@dataclass
class Targets(Generic[Array]):
    """Sparse distributions over the vocabulary, one per position."""

    ids: Array
    """[M, K] int64, by falling probability; an unused slot repeats slot 0's id."""
    logp: Array
    """[M, K] float32, −inf in an unused slot; Σ exp(logp) + exp(log_tail) = 1."""
    samples: Array
    """[M, S] int64, drawn from p(· | tail), each of mass exp(log_tail) / S; slot 0's id where there is no tail."""
    log_tail: Array
    """[M] float32, log of the mass outside the support; −inf where the support is everything."""
    gold: Array
    """[M] float32, log-probability of the true token, as captured."""
    entropy: Array
    """[M] float32, of the full distribution; makes the value of forward KL with samples unbiased."""

    def __len__(self) -> int:
        return len(cast(Any, self.log_tail))

    def __getitem__(self, positions: Any) -> "Targets[Array]":
        """Return the targets of some positions: a slice, a mask or indices."""
        return Targets(*(cast(Any, value)[positions] for value in self._values()))

    def __setitem__(self, positions: Any, targets: "Targets[Array]") -> None:
        """Put targets in the place of those at some positions."""
        for mine, theirs in zip(self._values(), targets._values(), strict=True):
            cast(Any, mine)[positions] = theirs

    @staticmethod
    def blank(positions: int, top_k: int, tail_samples: int) -> "Targets[np.ndarray]":
        """Return arrays of the right shapes and types that hold nothing yet."""
        return Targets(
            ids=np.empty((positions, top_k), np.int64),
            logp=np.empty((positions, top_k), np.float32),
            samples=np.empty((positions, tail_samples), np.int64),
            log_tail=np.empty(positions, np.float32),
            gold=np.empty(positions, np.float32),
            entropy=np.empty(positions, np.float32),
        )

    @staticmethod
    def concatenate(parts: Sequence["Targets[np.ndarray]"]) -> "Targets[np.ndarray]":
        """Join the targets of arrays, one after another."""
        return Targets(*(np.concatenate(values) for values in zip(*(part._values() for part in parts), strict=True)))

    def each(self, change: Callable[[Any], Other]) -> "Targets[Other]":
        """Return what a function makes of each of the arrays or tensors."""
        return Targets(*(change(value) for value in self._values()))

    def to_numpy(self) -> "Targets[np.ndarray]":
        """Return the same as arrays: int64 and float32."""
        return self.each(lambda value: (value.float() if value.is_floating_point() else value).cpu().numpy())

    def to(self, device: Any, *, non_blocking: bool = False) -> "Targets[Array]":
        """Move every tensor to a device."""
        return self.each(lambda value: value.to(device, non_blocking=non_blocking))

    def in_precision(self, dtype: Any) -> "Targets[Array]":
        """Return the same with every log-probability in a floating-point type."""
        return self.each(lambda value: value.to(dtype) if value.is_floating_point() else value)

    def pin_memory(self) -> "Targets[Array]":
        """Move every tensor to page-locked memory; a `DataLoader` calls it."""
        return self.each(lambda value: value.pin_memory())

    def _values(self) -> Iterator[Array]:
        return (getattr(self, field.name) for field in fields(self))
