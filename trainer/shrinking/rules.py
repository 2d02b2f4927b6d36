"""Which layers of a model stay: rules by name, each a function of what it asks about the source.

    ends        the last third and, before it, the first two thirds of those kept: nothing is measured
    influence   those that change the hidden states most: 1 − cos(before, after), mean over a sample's tokens; one pass
    loss        take away, one after another, the layer without which the sample's loss is lowest

`influence` is ShortGPT's block influence (arXiv 2403.03853); `loss` is greedy, as removing two layers is not the sum of
removing each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


class Source(Protocol):
    """What a rule may ask about a model."""

    n_layers: int

    def influence(self) -> list[float]:
        """Return 1 − cos of the hidden states before and after each layer."""

    def loss_of(self, layers: Sequence[int]) -> float:
        """Return the sample's loss under a model of these layers alone, nats per position."""


@dataclass(frozen=True)
class Choice:
    """Which layers stay, rising, and what was measured for it."""

    layers: list[int]
    scores: dict[str, Any] = field(default_factory=dict)


def ends(source: Source, count: int) -> Choice:
    """Keep the first layers and the last: the ends read and write the vocabulary, and are hardest to do without."""
    last = max(1, count // 3) if count > 1 else 0
    return Choice([*range(count - last), *range(source.n_layers - last, source.n_layers)])


def most_influence(source: Source, count: int) -> Choice:
    """Keep the layers that change the hidden states most; of equals, the earlier."""
    scores = source.influence()
    by_score = sorted(range(source.n_layers), key=lambda layer: (-scores[layer], layer))
    return Choice(sorted(by_score[:count]), {"influence": scores})


def least_loss(source: Source, count: int) -> Choice:
    """Take layers away one after another, each time the one whose absence costs least; of equals, the later."""
    kept, removed = list(range(source.n_layers)), []
    while len(kept) > count:
        losses = {layer: source.loss_of([other for other in kept if other != layer]) for layer in kept}
        layer = min(losses, key=lambda layer: (losses[layer], -layer))
        kept.remove(layer)
        removed.append({"layer": layer, "loss": losses[layer]})
    return Choice(kept, {"removed": removed})


Rule = Literal["ends", "influence", "loss"]
RULES: dict[Rule, Callable[[Source, int], Choice]] = {"ends": ends, "influence": most_influence, "loss": least_loss}
"""By the name that `shrink.by` gives."""
