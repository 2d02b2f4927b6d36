"""What a loss takes for the teacher's tail: outcomes, draws, or a mixture of both; P is its mass, m the draws.

    tail        target p̂(v) on the tail                                      outcomes       needs of a cache
    bucket      P · q(v | tail)                                                K + 1          –
    blocks      P_g · q(v | block g)                                           K + G          blocks
    samples     P · draws of v / m                                             –              samples
    mixed       (1 − λ) · that of blocks (bucket without) + λ · that of draws  K + G, or 1    samples
    adaptive    the same, λ = B / (B + V/m) at each position                   K + G          blocks and samples
    pooled      the same, one λ for a step, moved from step to step            K + G          blocks and samples

    B = ‖p(· | tail) − p̂(· | tail)‖², the bias of the outcomes' p̂;  V = 1 − ‖p(· | tail)‖², the variance of one draw

Draws serve forward KL at temperature 1 alone. q is a constant in p̂: the gradient for q's logits is q − p̂.
"""

from dataclasses import dataclass
from typing import Literal, get_args

TailSetting = Literal["auto", "blocks", "bucket", "samples", "mixed", "adaptive", "pooled"]
SAMPLED: tuple[TailSetting, ...] = ("samples", "mixed", "adaptive", "pooled")
"""The settings that take draws."""


@dataclass(frozen=True)
class Tail:
    """One row of the table above, as the loss takes it."""

    by_block: bool = False
    """Whether each block of the tail is an outcome of its own; else the tail is one."""
    sample_weight: float | None = 0.0
    """λ, the draws' share of the tail's target; None to choose it at each position."""
    pooled: bool = False
    """Whether λ is that of one step, and the loss is to say what moves it to the next one's."""

    @property
    def takes_samples(self) -> bool:
        return self.pooled or self.sample_weight != 0

    @property
    def moves(self) -> bool:
        """Whether λ is found in training, not given."""
        return self.pooled or self.sample_weight is None

    def record(self) -> dict[str, bool | float | None]:
        """Return what identifies it, without what a tail of before had no name for."""
        return {name: value for name, value in vars(self).items() if name != "pooled" or value}


@dataclass(frozen=True)
class Kept:
    """What a cache keeps of a tail beside its mass."""

    samples: int
    """Draws per position."""
    blocks: int
    """Blocks of ids with a mass each."""


def default_tail(kept: Kept, takes_samples: bool) -> TailSetting:
    """Return what "auto" stands for: the one place that decides it. `takes_samples`: forward KL at temperature 1."""
    if kept.blocks:
        return "pooled" if kept.samples and takes_samples else "blocks"
    return "samples" if kept.samples and takes_samples else "bucket"


def choose_tail(setting: TailSetting, kept: Kept, takes_samples: bool, mixed_weight: float = 0.5) -> Tail:
    """Return the tail that a setting stands for.

    Raises:
        ValueError: the setting needs what is not kept, or draws where they serve nothing; the message says which.
    """
    if setting not in get_args(TailSetting):
        raise ValueError(f"tail {setting!r} is not known; expected one of {', '.join(get_args(TailSetting))}")
    if setting == "auto":
        setting = default_tail(kept, takes_samples)
    if setting in SAMPLED and not takes_samples:
        raise ValueError(f"tail {setting!r} is for forward KL at temperature 1, where alone draws stand for the tail")
    if setting in SAMPLED and not kept.samples:
        raise ValueError(f"tail {setting!r} needs tail samples, and none are kept")
    if setting in ("blocks", "adaptive", "pooled") and not kept.blocks:
        raise ValueError(f"tail {setting!r} needs the tail's mass by blocks, which is not kept")
    by_block = kept.blocks > 0
    weights: dict[TailSetting, Tail] = {
        "bucket": Tail(),
        "blocks": Tail(by_block),
        "samples": Tail(sample_weight=1.0),
        "mixed": Tail(by_block, mixed_weight),
        "adaptive": Tail(by_block, None),
        "pooled": Tail(by_block, 0.0, pooled=True),
    }
    return weights[setting]
