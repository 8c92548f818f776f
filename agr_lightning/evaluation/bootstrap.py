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
        blocks: what to sum; memory grows with their values, not with columns times samples.
        clusters: for each sample the number of its cluster, ``(samples,)``: copies of a photo go together.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    from scipy import sparse

    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    n = int(cluster.max()) + 1
    ends = np.cumsum([0, *(block.values.shape[1] for block in blocks.values())])
    entries = []
    for block, first in zip(blocks.values(), ends, strict=False):
        row, column = np.nonzero(~np.isnan(block.values))
        entries.append((first + column, cluster[block.rows[row]], block.values[row, column]))
    columns, members, values = map(np.concatenate, zip(*entries, strict=True))
    # Entries of one cluster are added up.
    sums, counts = (
        sparse.csr_matrix((entry, (columns, members)), (ends[-1], n)) for entry in (values, np.ones(len(values)))
    )
    random = np.random.default_rng(0)
    found = [(sums @ np.ones((n, 1)), counts @ np.ones((n, 1)))]
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = random.integers(0, n, (_AT_ONCE, n)) + n * np.arange(_AT_ONCE)[:, None]
        times = np.bincount(drawn.ravel(), minlength=_AT_ONCE * n).reshape(_AT_ONCE, n).T.astype(np.float64)
        found.append((sums @ times, counts @ times))
    all_sums, all_counts = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return {key: Sums(all_sums[a:b], all_counts[a:b]) for key, a, b in zip(blocks, ends, ends[1:], strict=False)}


def percentiles(found: NDArray[np.float64]) -> Interval | None:
    """The 95 % interval of what was computed in each resample, NaN where it could not be; None if nowhere."""
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(found, [tail, 1 - tail]).tolist()
    return low, high


def wilson(share: float, n: int) -> Interval:
    """Wilson's 95 % score interval of a share of n (Wilson, JASA 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)
