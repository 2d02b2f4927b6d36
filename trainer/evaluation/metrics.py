"""Scores of parsed answers against gold ones, as fractions; an answer that could not be parsed is None.

of single rows, averaged       accuracy  exact_match  token_f1  exact_f1  partial_f1  partial_f1_official
of all rows together           macro_f1  kappa  kappa_linear          from counts_GP[gold label, predicted label]

exact_f1             2 |P ∩ G| / (|P| + |G|) on the sets of entities
partial_f1           the same, where containing, or being contained in, an entity of the other side is a match
partial_f1_official  JMED-LLM's script: it tests membership in the list, not containment. One exact hit counts
                     every gold entity and a true partial match none, so it can exceed 1. Only to compare with.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from trainer.evaluation.answers import Answer

RowMetric = Literal["accuracy", "exact_match", "token_f1", "exact_f1", "partial_f1", "partial_f1_official"]
CountMetric = Literal["macro_f1", "kappa", "kappa_linear"]
MetricName = RowMetric | CountMetric
UNPARSED = "None"
"""The class of answers that could not be parsed, in the agreement metrics (JMED-LLM's name for it)."""


def is_row_metric(metric: MetricName) -> bool:
    """Return whether a metric is a mean of scores of single rows."""
    return metric in get_args(RowMetric)


def row_scores(metric: MetricName, parsed: Sequence[Answer | None], gold: Sequence[Answer]) -> np.ndarray:
    """Return the score of each row, [rows] float64."""
    score = _OF_ROW[metric]
    return np.array([0.0 if p is None else score(p, g) for p, g in zip(parsed, gold, strict=True)], np.float64)


def label_indices(parsed: Sequence[Answer | None], gold: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the rows' gold and predicted labels as indices into the sorted union of both, and that union."""
    gold_labels = [str(label) for label in gold]
    predicted_labels = [UNPARSED if label is None else str(label) for label in parsed]
    labels = sorted({*gold_labels, *predicted_labels})
    index = {label: position for position, label in enumerate(labels)}
    return (
        np.array([index[label] for label in gold_labels], np.int64),
        np.array([index[label] for label in predicted_labels], np.int64),
        labels,
    )


def counts_GP(gold: np.ndarray, predicted: np.ndarray, labels: int) -> np.ndarray:
    """Return the confusion matrix, [gold, predicted] float64."""
    return np.bincount(gold * labels + predicted, minlength=labels * labels).reshape(labels, labels).astype(np.float64)


def count_score(metric: MetricName, counts: np.ndarray) -> float:
    """Return a score of a confusion matrix [gold, predicted]."""
    return _OF_COUNTS[metric](counts)


def macro_f1(counts: np.ndarray) -> float:
    """Average F1 over the labels that occur in gold; an unparsed answer is wrong, but no label of its own."""
    occurs = counts.sum(axis=1) > 0
    f1 = 2 * np.diag(counts)[occurs] / (counts.sum(axis=0) + counts.sum(axis=1))[occurs]
    return float(f1.mean())


def kappa(counts: np.ndarray, *, linear: bool = False) -> float:
    """Return Cohen's kappa, 1 − Σ w·observed / Σ w·expected; 0 where chance alone agrees wholly.

    w is 1 off the diagonal or, if `linear`, the distance between the labels in their sorted order.
    """
    position = np.arange(len(counts))
    distance = np.abs(position[:, None] - position[None, :])
    weight = distance if linear else distance > 0
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    chance = (weight * expected).sum()
    return float(1 - (weight * counts).sum() / chance) if chance > 0 else 0.0


def exact_match(parsed: Answer, gold: Answer) -> float:
    """Return whether both are the same, but for white space."""
    return float(_spaced(parsed) == _spaced(gold))


def token_f1(parsed: Answer, gold: Answer) -> float:
    """Return the F1 of the bags of words that white space divides, whatever their case."""
    written, wanted = Counter(_spaced(parsed).casefold().split()), Counter(_spaced(gold).casefold().split())
    return _f1((written & wanted).total(), written.total(), (written & wanted).total(), wanted.total())


def exact_f1(parsed: Answer, gold: Answer) -> float:
    """Return the F1 of two sets of entities."""
    written, wanted = set(_entities(parsed)), set(_entities(gold))
    return _f1(len(written & wanted), len(written), len(written & wanted), len(wanted))


def partial_f1(parsed: Answer, gold: Answer) -> float:
    """Return the F1 of two sets of entities where overlapping ones match: precision over the predicted entities with
    a match, recall over the gold ones with a match."""
    written, wanted = set(_entities(parsed)), set(_entities(gold))
    right = sum(any(_overlap(entity, other) for other in wanted) for entity in written)
    found = sum(any(_overlap(entity, other) for other in written) for entity in wanted)
    return _f1(right, len(written), found, len(wanted))


def partial_f1_official(parsed: Answer, gold: Answer) -> float:
    """Return what JMED-LLM's evaluation script computes for one row; see above why it is not a partial F1."""
    written, wanted = _entities(parsed), _entities(gold)
    found = sum(any(entity in written or other in wanted for other in written) for entity in wanted)
    return _f1(found, len(written), found, len(wanted))


def _f1(right: float, written: int, found: float, wanted: int) -> float:
    """F1 of precision right/written and recall found/wanted; two empty sides agree."""
    if not written and not wanted:
        return 1.0
    if not right or not found:
        return 0.0
    precision, recall = right / written, found / wanted
    return 2 * precision * recall / (precision + recall)


def _overlap(one: str, other: str) -> bool:
    return bool(one and other) and (one in other or other in one)


def _entities(answer: Answer) -> list[str]:
    return [answer] if isinstance(answer, str) else answer


def _spaced(answer: Answer) -> str:
    return " ".join(" ".join(_entities(answer)).split())


_OF_ROW: dict[str, Callable[[Answer, Answer], float]] = {
    "accuracy": lambda parsed, gold: float(parsed == gold),
    "exact_match": exact_match,
    "token_f1": token_f1,
    "exact_f1": exact_f1,
    "partial_f1": partial_f1,
    "partial_f1_official": partial_f1_official,
}
_OF_COUNTS: dict[str, Callable[[np.ndarray], float]] = {
    "macro_f1": macro_f1,
    "kappa": kappa,
    "kappa_linear": lambda counts: kappa(counts, linear=True),
}
