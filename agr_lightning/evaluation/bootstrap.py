"""Intervals: bootstrap over groups of samples, and Wilson's score for proportions."""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 1000

_AT_ONCE = 100

Interval = tuple[float, float]
Key = TypeVar("Key")


class Block(NamedTuple):
    """Values of some samples: their rows, int64 ``(k,)``, and columns, float64 ``(k, columns)``, NaN where unknown."""

    rows: NDArray[np.int64]
    values: NDArray[np.float64]


class Sums(NamedTuple):
    """Sums of a block's columns and counts of what was summed, each ``(columns, 1 + resamples)``; all samples first."""

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]


def resample(blocks: Mapping[Key, Block], clusters: ArrayLike) -> dict[Key, Sums]:
    """Draws whole clusters with replacement, as many as there are, 1,000 times; the same draws for all blocks.

    Args:
        blocks: what to sum.
        clusters: for each sample the number of its cluster, ``(samples,)``: copies of a photo go together.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    n, random = int(cluster.max()) + 1, np.random.default_rng(0)
    parts: dict[Key, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {key: [] for key in blocks}
    for part in range(1 + RESAMPLES // _AT_ONCE):
        # How often each cluster was drawn, (clusters, resamples); at first each once.
        drawn = random.integers(0, n, (_AT_ONCE, n)) if part else np.arange(n)[None]
        times = np.stack([np.bincount(row, minlength=n) for row in drawn], axis=1).astype(np.float64)
        for key, (rows, values) in blocks.items():
            known, weights = ~np.isnan(values), times[cluster[rows]]
            parts[key].append((np.where(known, values, 0).T @ weights, known.T @ weights))
    return {
        key: Sums(*(np.concatenate(each, axis=1) for each in zip(*found, strict=True))) for key, found in parts.items()
    }


def percentiles(found: NDArray[np.float64]) -> Interval | None:
    """The 95 % interval of what was computed in each resample, NaN where it could not be; None if nowhere."""
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def wilson(share: float, n: int) -> Interval:
    """Wilson's 95 % score interval of a share of n (Wilson, JASA 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)
