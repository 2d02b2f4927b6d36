"""What two lists of entities have in common: as sets, and one to one by overlap.

    gold       severe cough   fever   rash             predicted   cough   fever   itchy rash   nausea
    entities   fever                                   right 1 of predicted 4 and gold 3
    overlaps   severe cough–cough 5/12   fever–fever 1   rash–itchy rash 4/10     right 1.82 of 4 and 3

Both lists are sets: saying an entity twice gains nothing. An overlap is the longest text that both entities contain, as
a share of the longer one; less than half of the shorter one is none, because any two words share a letter. No entity is
credited twice: of all pairings the one with the most credit counts.
"""

from typing import NamedTuple

from trainer.evaluation.answers import Answer


class Found(NamedTuple):
    """How many of a row's entities are right, of so many predicted and so many gold ones."""

    right: float
    predicted: int
    gold: int


def exact(parsed: Answer | None, gold: Answer) -> Found:
    """Count equal entities.

    An answer that could not be parsed predicts nothing or, where nothing is right, one wrong entity.
    """
    wanted = set(entities(gold))
    if parsed is None:
        return Found(0, int(not wanted), len(wanted))
    written = set(entities(parsed))
    return Found(len(written & wanted), len(written), len(wanted))


def partial(parsed: Answer | None, gold: Answer) -> Found:
    """Credit each entity's overlap with the one that it is paired with, in the best of all one-to-one pairings."""
    counts = exact(parsed, gold)
    if parsed is None or counts.right == counts.predicted == counts.gold:
        return counts
    written, wanted = sorted(set(entities(parsed))), sorted(set(entities(gold)))
    return counts._replace(right=best_pairing([[overlap(one, other) for other in wanted] for one in written]))


def overlap(one: str, other: str) -> float:
    """Return the longest common text's share of the longer entity; 0 where it is less than half of the shorter one."""
    if one == other:
        return 1.0
    short, long = sorted((one, other), key=len)
    length, more = 0, (len(short) + 1) // 2
    while (
        short
        and more <= len(short)
        and any(short[start : start + more] in long for start in range(len(short) - more + 1))
    ):
        length, more = more, more + 1
    return length / len(long) if length else 0.0


def best_pairing(credit: list[list[float]]) -> float:
    """Return the largest sum of `credit[i][j]` ≥ 0 over pairings in which no i and no j occurs twice.

    The Hungarian method on costs −credit, in O(rows² · columns): each row in turn is added along a shortest
    augmenting path, with potentials that keep reduced costs from falling below zero.
    """
    if not credit or not credit[0]:
        return 0.0
    if len(credit) > len(credit[0]):
        credit = [list(column) for column in zip(*credit, strict=True)]
    rows, columns = len(credit), len(credit[0])
    row_potential, column_potential = [0.0] * (rows + 1), [0.0] * (columns + 1)
    row_of = [0] * (columns + 1)  # column → its row, numbered from 1; column 0 holds the row that is being added
    for row in range(1, rows + 1):
        row_of[0], column = row, 0
        distance, before, done = [float("inf")] * (columns + 1), [0] * (columns + 1), [False] * (columns + 1)
        while row_of[column]:
            done[column] = True
            here, step, nearest = row_of[column], float("inf"), 0
            for other in range(1, columns + 1):
                if done[other]:
                    continue
                reduced = -credit[here - 1][other - 1] - row_potential[here] - column_potential[other]
                if reduced < distance[other]:
                    distance[other], before[other] = reduced, column
                if distance[other] < step:
                    step, nearest = distance[other], other
            for other in range(columns + 1):
                if done[other]:
                    row_potential[row_of[other]] += step
                    column_potential[other] -= step
                else:
                    distance[other] -= step
            column = nearest
        while column:
            row_of[column], column = row_of[before[column]], before[column]
    return sum(credit[row_of[column] - 1][column - 1] for column in range(1, columns + 1) if row_of[column])


def entities(answer: Answer) -> list[str]:
    """Return an answer as a list; a text is one entity."""
    return [answer] if isinstance(answer, str) else answer
