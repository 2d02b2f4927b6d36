"""What a manifest says of how distributions are stored and cut into files, and the base of all that is stored as JSON.

targets   top_k, top_p, tail_samples, …, blocks     probe   sequences, top_k     layout   shard and chunk positions
"""

from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

MAX_COUNT = 2**62
"""Above any count; sums and products of two, as offsets, stay exact."""
MAX_BLOCKS = 1024


class Entry(BaseModel):
    """Base of everything that is stored as JSON: strict, immutable, no unknown fields."""

    # A NaN is no loss: compared with others it would win or lose by the order of the comparison.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def without_absent(values: dict[str, Any], field: str) -> dict[str, Any]:
    """Leave a field out where it is None, so that older versions keep their bytes."""
    return {key: value for key, value in values.items() if key != field or value is not None}


class BlockOptions(Entry):
    """How the tail's mass is kept by blocks of ids."""

    edges: list[int] = Field(min_length=2, max_length=MAX_BLOCKS + 1)
    """Where the vocabulary is cut: from 0 to its size, rising."""
    steps_per_nat: int = Field(ge=1, lt=MAX_COUNT)
    """A block's share of the tail is rounded to this part of a nat."""


class TargetOptions(Entry):
    """The options that change what is stored of a distribution."""

    top_k: int = Field(ge=1, lt=MAX_COUNT)
    top_p: float = Field(gt=0, le=1)
    tail_samples: int = Field(ge=0, lt=MAX_COUNT)
    logp_steps_per_nat: int = Field(ge=1, lt=MAX_COUNT)
    seed: int = Field(ge=0)
    blocks: BlockOptions | None = None
    """Absent from a manifest of version 1 or 2."""

    @property
    def edges(self) -> tuple[int, ...]:
        """The edges of the tail's blocks; none where only its whole mass is kept."""
        return tuple(self.blocks.edges) if self.blocks else ()

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_absent(handler(self), "blocks")


class ProbeOptions(Entry):
    """How many sequences are compared, and on how many ids per position."""

    sequences: int = Field(ge=1, lt=MAX_COUNT)
    top_k: int = Field(ge=1, lt=MAX_COUNT)


class Layout(Entry):
    """How positions are cut into files and chunks."""

    shard_positions: int = Field(ge=1, lt=MAX_COUNT)
    chunk_positions: int = Field(ge=1, lt=MAX_COUNT)

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if self.shard_positions % self.chunk_positions:
            raise ValueError("`shard_positions` is no multiple of `chunk_positions`")
        return self
