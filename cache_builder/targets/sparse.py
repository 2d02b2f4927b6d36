"""What one checkpoint says at M positions: one container from capture to the loss, of numpy arrays or of tensors.

    capture ─▶ Targets of arrays ─▶ records ─▶ cache ─▶ Targets of arrays ─▶ to_torch ─▶ Targets of tensors ─▶ loss

Importing this needs no torch, so that a cache can be read without it.

Shapes: M positions, K slots of the support, S tail samples, G blocks of the tail. Log-probabilities are natural logs.
"""

from collections.abc import Callable, Iterable, Sequence
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
    log_blocks: Array = None  # type: ignore[assignment]
    """[M, G] float32, log of the tail's mass in each block of ids, −inf where none is; [M, 0] where it is not kept."""
    log_collision: Array = None  # type: ignore[assignment]
    """[M, 1] float32, log Σ p(v | tail)², the chance that two draws from the tail agree; [M, 0] where it is not kept.
    It means nothing where there is no tail."""
    edges: tuple[int, ...] = ()
    """G + 1 ids at which the vocabulary is cut into blocks (`blocks.py`), of all positions; none where G is 0."""

    def __post_init__(self) -> None:
        """Give what is not kept its shape."""
        none = cast(Any, self.log_tail)[..., None][..., :0]
        self.log_blocks = none if self.log_blocks is None else self.log_blocks
        self.log_collision = none if self.log_collision is None else self.log_collision

    def __len__(self) -> int:
        return len(cast(Any, self.log_tail))

    def __getitem__(self, positions: Any) -> "Targets[Array]":
        """Return the targets of some positions: a slice, a mask or indices."""
        return self.each(lambda value: value[positions])

    def __setitem__(self, positions: Any, targets: "Targets[Array]") -> None:
        """Put targets in the place of those at some positions."""
        for name in ARRAYS:
            getattr(self, name)[positions] = getattr(targets, name)

    @staticmethod
    def blank(positions: int, top_k: int, tail_samples: int, edges: tuple[int, ...] = ()) -> "Targets[np.ndarray]":
        """Return arrays of the right shapes and types that hold nothing yet."""
        return Targets(
            ids=np.empty((positions, top_k), np.int64),
            logp=np.empty((positions, top_k), np.float32),
            samples=np.empty((positions, tail_samples), np.int64),
            log_tail=np.empty(positions, np.float32),
            gold=np.empty(positions, np.float32),
            entropy=np.empty(positions, np.float32),
            log_blocks=np.empty((positions, max(len(edges) - 1, 0)), np.float32),
            log_collision=np.empty((positions, int(bool(edges and tail_samples))), np.float32),
            edges=edges,
        )

    @staticmethod
    def join(parts: Iterable["Targets[Array]"], concatenate: Callable[[Any], Array]) -> "Targets[Array]":
        """Join targets one after another, with the function that joins a list of such arrays: `np.concatenate`."""
        parts = list(parts)
        joined = {name: concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
        return Targets(edges=parts[0].edges, **joined)

    @staticmethod
    def concatenate(parts: Sequence["Targets[np.ndarray]"]) -> "Targets[np.ndarray]":
        """Join the targets of arrays, one after another."""
        return Targets.join(parts, np.concatenate)

    def each(self, change: Callable[[Any], Other]) -> "Targets[Other]":
        """Return what a function makes of each of the arrays or tensors."""
        return Targets(edges=self.edges, **{name: change(getattr(self, name)) for name in ARRAYS})

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


ARRAYS = tuple(field.name for field in fields(Targets) if field.name != "edges")
"""The names of what there is one entry of per position."""
