"""Which layers stay, by each rule, against what the rule says in words."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from trainer.shrinking.rules import RULES, Choice

COSTS = (5.0, 1.0, 2.0, 1.0, 4.0)


@dataclass
class Told:
    """A source whose answers are known; layers 1 and 3 stand in for each other."""

    n_layers: int = 5
    asked: list[tuple[int, ...]] = field(default_factory=list)

    def influence(self) -> list[float]:
        return [0.9, 0.2, 0.5, 0.2, 0.3][: self.n_layers]

    def loss_of(self, layers: Sequence[int]) -> float:
        self.asked.append(tuple(layers))
        gone = [layer for layer in range(self.n_layers) if layer not in layers]
        return sum(COSTS[layer] for layer in gone) + 10 * (1 in gone and 3 in gone)


def chosen(rule: str, count: int, layers: int = 5) -> Choice:
    return RULES[rule](Told(layers), count)


@pytest.mark.parametrize(
    ("layers", "count", "kept"),
    [
        (30, 6, [0, 1, 2, 3, 28, 29]),
        (30, 12, [*range(8), 26, 27, 28, 29]),
        (5, 2, [0, 4]),
        (5, 3, [0, 1, 4]),
        (5, 1, [0]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_the_ends_are_a_third_of_last_layers_and_the_others_from_the_first(
    layers: int, count: int, kept: list[int]
) -> None:
    assert chosen("ends", count, layers) == Choice(kept)


def test_influence_keeps_what_changes_most_and_of_equals_the_earlier() -> None:
    assert [chosen("influence", count).layers for count in (1, 3, 4)] == [[0], [0, 2, 4], [0, 1, 2, 4]]
    assert chosen("influence", 2).scores == {"influence": [0.9, 0.2, 0.5, 0.2, 0.3]}


def test_loss_sees_that_two_layers_stand_in_for_each_other() -> None:
    choice = chosen("loss", 3)
    assert choice.layers == [0, 1, 4]
    assert choice.scores["removed"] == [{"layer": 3, "loss": 1.0}, {"layer": 2, "loss": 3.0}]
    # each step takes what is best then; that is the best pair here, not that of the two layers that cost least alone
    pairs = {kept: Told().loss_of(kept) for kept in itertools.combinations(range(5), 3)}
    assert tuple(choice.layers) == min(pairs, key=lambda kept: pairs[kept])


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_keeps_as_many_layers_as_are_asked_for_rising(rule: str) -> None:
    for count in range(1, 6):
        layers = chosen(rule, count).layers
        assert len(layers) == count and sorted(set(layers)) == layers
        assert set(layers) <= set(range(5))


def test_keeping_all_layers_asks_for_no_loss() -> None:
    source = Told()
    assert RULES["loss"](source, 5).layers == [0, 1, 2, 3, 4]
    assert source.asked == []
