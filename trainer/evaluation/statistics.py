"""How sure a score is, and whether two models differ: resampled rows, with a fixed seed.

interval            percentile bootstrap over test rows
paired_bootstrap    of the difference of two models on the same rows
mcnemar             exact: of the rows that only one of the two got right, is the split a fair coin's?
mean_and_std        over seeds
"""

from collections.abc import Callable, Sequence

import numpy as np

CONFIDENCE = 0.95
SEED = 0


def interval(score: Callable[[np.ndarray], float], rows: int, samples: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of `score(row indices)` over resampled rows."""
    generator = np.random.default_rng(SEED)
    scores = [score(generator.integers(rows, size=rows)) for _ in range(samples)]
    return _percentiles(np.array(scores))


def paired_bootstrap(
    scores: np.ndarray,
    other: np.ndarray,
    samples: int = 10_000,
    weights: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[float, float, float, float]:
    """Return the difference of two mean scores, its 95 % interval and its two-sided p-value, resampling rows in pairs.

    `scores` and `other` are [rows], or [models, rows] of which the mean over models counts. With `weights`, of the same
    two shapes, a mean over rows is Σ weight · score / Σ weight, the ratio of two sums that are resampled together, as
    the F1 over all entities is.
    """
    ours, theirs = (np.atleast_2d(np.asarray(each, np.float64)) for each in (scores, other))
    generator = np.random.default_rng(SEED)
    rows = ours.shape[1]
    if weights is None:
        row_difference = ours.mean(axis=0) - theirs.mean(axis=0)
        difference = float(np.mean(ours) - np.mean(theirs))
        resampled = [row_difference[generator.integers(rows, size=rows)].mean() for _ in range(samples)]
    else:
        sums = [_sums(*pair) for pair in zip((ours, theirs), weights, strict=True)]

        def value(counts: np.ndarray) -> float:
            one, two = (_ratios(each @ counts) for each in sums)
            return float(one.mean() - two.mean())

        difference = value(np.ones(rows))
        resampled = [value(np.bincount(generator.integers(rows, size=rows), minlength=rows)) for _ in range(samples)]
    differences = np.array(resampled)
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return difference, *_percentiles(differences), min(1.0, 2 * (int(beyond) + 1) / (samples + 1))


def mcnemar(correct: np.ndarray, other: np.ndarray) -> float:
    """Return the exact two-sided p-value that two models err alike, from which rows each got right."""
    only_one = int((np.asarray(correct, bool) & ~np.asarray(other, bool)).sum())
    only_other = int((~np.asarray(correct, bool) & np.asarray(other, bool)).sum())
    discordant, fewer = only_one + only_other, min(only_one, only_other)
    tail = ways = 1
    for count in range(1, fewer + 1):
        ways = ways * (discordant - count + 1) // count
        tail += ways
    return min(1.0, 2 * tail / 2**discordant)


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation; no deviation of fewer than two."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _sums(scores_SN: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what is summed over rows, [2, models, rows]: weighted scores and weights."""
    weights_SN = np.atleast_2d(np.asarray(weights, np.float64))
    return np.stack([scores_SN * weights_SN, weights_SN])


def _ratios(sums_2S: np.ndarray) -> np.ndarray:
    """Return sum / sum, 0 where there is nothing to divide by."""
    return np.divide(sums_2S[0], sums_2S[1], out=np.zeros_like(sums_2S[0]), where=sums_2S[1] > 0)


def _percentiles(scores: np.ndarray) -> tuple[float, float]:
    edge = (1 - CONFIDENCE) / 2
    low, high = np.quantile(scores, [edge, 1 - edge])
    return float(low), float(high)
