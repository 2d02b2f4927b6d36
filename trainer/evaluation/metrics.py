"""Scores of parsed answers against gold ones, as fractions; an answer that could not be parsed is None.

of single rows, averaged       accuracy  exact_match  token_f1  exact_f1  partial_f1_official
of entities, over all rows     entity_f1  entity_precision  entity_recall  partial_f1         Σ right / Σ entities
of labels, over all rows       macro_f1  kappa  kappa_linear          from counts_GP[gold label, predicted label]

entity_f1            2 Σ |P ∩ G| / Σ (|P| + |G|), P and G a row's sets of entities; a row without any counts nothing
partial_f1           the same, crediting overlaps one to one (entities.py)
exact_f1             mean over rows of 2 |P ∩ G| / (|P| + |G|); a row without any is 1, so saying nothing scores their
                     share
partial_f1_official  JMED-LLM's script: it tests membership in the set, not overlap. One exact hit counts every gold
                     entity and a true partial match none, so it can exceed 1. Only to compare with.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from trainer.evaluation.answers import Answer
from trainer.evaluation.entities import Found, entities, exact, partial

RowMetric = Literal["accuracy", "exact_match", "token_f1", "exact_f1", "partial_f1_official"]
EntityMetric = Literal["entity_f1", "entity_precision", "entity_recall", "partial_f1"]
CountMetric = Literal["macro_f1", "kappa", "kappa_linear"]
MetricName = RowMetric | EntityMetric | CountMetric
UNPARSED = "None"
"""The class of answers that could not be parsed, in the agreement metrics (JMED-LLM's name for it)."""


class RowScores(NamedTuple):
    """Each row's score and how much it counts, both [rows] float64: a metric's value is the weighted mean."""

    score: np.ndarray
    weight: np.ndarray


def is_row_metric(metric: MetricName) -> bool:
    """Return whether a metric is a (weighted) mean of scores of single rows."""
    return metric in get_args(RowMetric) or metric in get_args(EntityMetric)


def row_scores(metric: MetricName, parsed: Sequence[Answer | None], gold: Sequence[Answer]) -> RowScores:
    """Return the score and weight of each row; the weight is 1, or a metric of entities' number of them."""
    if metric in get_args(EntityMetric):
        found_of, share_of = _OF_ENTITIES[metric]
        found = [found_of(p, g) for p, g in zip(parsed, gold, strict=True)]
        right, weight = np.array([share_of(each) for each in found], np.float64).reshape(-1, 2).T
        score = np.array([float(each.predicted == each.gold == 0) for each in found])
        return RowScores(np.divide(right, weight, out=score, where=weight > 0), weight)
    of_row = _OF_ROW[metric]
    scores = [0.0 if p is None else of_row(p, g) for p, g in zip(parsed, gold, strict=True)]
    return RowScores(np.array(scores, np.float64), np.ones(len(gold)))


def scorer(
    metric: MetricName, parsed: Sequence[Answer | None], gold: Sequence[Answer]
) -> Callable[[np.ndarray], float]:
    """Return the function from rows, as indices [n], to the metric's value on them, as bootstraps resample it."""
    if is_row_metric(metric):
        score, weight = row_scores(metric, parsed, gold)
        return lambda rows: weighted_mean(score[rows], weight[rows])
    gold_index, predicted_index, labels = label_indices(parsed, gold)
    return lambda rows: count_score(metric, counts_GP(gold_index[rows], predicted_index[rows], len(labels)))


def weighted_mean(score: np.ndarray, weight: np.ndarray) -> float:
    """Return Σ weight · score / Σ weight, or 0 where nothing counts, as seqeval and scikit-learn have it.

    Summed in the rows' order, as JMED-LLM's script does, so that its metrics agree to the last digit.
    """
    total = float(np.cumsum(weight)[-1])
    return float(np.cumsum(weight * score)[-1]) / total if total else 0.0


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
    """Return the F1 of one row's two sets of entities."""
    right, written, wanted = exact(parsed, gold)
    return _f1(right, written, right, wanted)


def partial_f1_official(parsed: Answer, gold: Answer) -> float:
    """Return what JMED-LLM's evaluation script computes for one row; see above why it is not a partial F1.

    The script fails where gold is empty; here two empty sides agree.
    """
    written, wanted = set(entities(parsed)), set(entities(gold))
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


def _spaced(answer: Answer) -> str:
    return " ".join(" ".join(entities(answer)).split())


_OF_ROW: dict[str, Callable[[Answer, Answer], float]] = {
    "accuracy": lambda parsed, gold: float(parsed == gold),
    "exact_match": exact_match,
    "token_f1": token_f1,
    "exact_f1": exact_f1,
    "partial_f1_official": partial_f1_official,
}
_OF_ENTITIES: dict[str, tuple[Callable[[Answer | None, Answer], Found], Callable[[Found], tuple[float, float]]]] = {
    "entity_f1": (exact, lambda found: (2 * found.right, found.predicted + found.gold)),
    "entity_precision": (exact, lambda found: (found.right, found.predicted)),
    "entity_recall": (exact, lambda found: (found.right, found.gold)),
    "partial_f1": (partial, lambda found: (2 * found.right, found.predicted + found.gold)),
}
_OF_COUNTS: dict[str, Callable[[np.ndarray], float]] = {
    "macro_f1": macro_f1,
    "kappa": kappa,
    "kappa_linear": lambda counts: kappa(counts, linear=True),
}
