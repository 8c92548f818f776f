"""Intervals: bootstrap over groups of samples, and Wilson's score for proportions."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000

Interval = tuple[float, float]


def resample(clusters: ArrayLike) -> NDArray[np.float64]:
    """How often each sample counts: once at first, then in each of 1,000 resamples; ``(samples, 1 + resamples)``.

    Whole clusters are drawn with replacement, as many as there are: samples with equal numbers, like copies of a photo.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    n = int(cluster.max()) + 1
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    return np.stack(
        [np.bincount(row, minlength=n)[cluster] for row in (np.arange(n), *drawn)], axis=1, dtype=np.float64
    )


def percentiles(found: NDArray[np.float64]) -> Interval | None:
    """The 95 % interval of what was computed in each resample, NaN where it could not be; None if nowhere."""
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return low, high


def wilson(share: float, n: int) -> Interval:
    """Wilson's 95 % score interval of a share of n (Wilson, JASA 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)
