"""How sure a score is, and whether two models differ: resampled rows, with a fixed seed.

interval            percentile bootstrap over test rows
paired_bootstrap    of the difference of two models on the same rows
mcnemar             exact: of the rows that only one of the two got right, is the split a fair coin's?
mean_and_std        over seeds
"""

from collections.abc import Callable, Sequence

import numpy as np

CONFIDENCE = 0.95


def interval(score: Callable[[np.ndarray], float], rows: int, samples: int, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of `score(row indices)` over resampled rows."""
    generator = np.random.default_rng(seed)
    scores = [score(generator.integers(rows, size=rows)) for _ in range(samples)]
    return _percentiles(np.array(scores))


def mean_interval(scores: np.ndarray, samples: int, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of row scores; `interval` of a mean, at once."""
    return _resampled_means(scores, samples, seed)[0]


def paired_bootstrap(
    scores: np.ndarray, other: np.ndarray, samples: int = 10_000, seed: int = 0
) -> tuple[float, float, float, float]:
    """Return mean(scores) − mean(other), its 95 % interval and its two-sided p-value, resampling rows in pairs."""
    low_high, means = _resampled_means(np.asarray(scores, np.float64) - np.asarray(other, np.float64), samples, seed)
    difference = float(np.mean(scores) - np.mean(other))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return difference, *low_high, min(1.0, 2 * (int(beyond) + 1) / (samples + 1))


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


def _resampled_means(values: np.ndarray, samples: int, seed: int) -> tuple[tuple[float, float], np.ndarray]:
    generator = np.random.default_rng(seed)
    means = np.array([values[generator.integers(len(values), size=len(values))].mean() for _ in range(samples)])
    return _percentiles(means), means


def _percentiles(scores: np.ndarray) -> tuple[float, float]:
    edge = (1 - CONFIDENCE) / 2
    low, high = np.quantile(scores, [edge, 1 - edge])
    return float(low), float(high)
