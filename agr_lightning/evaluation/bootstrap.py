"""Intervals of figures: bootstrap over groups of samples, and Wilson's score for shares."""

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 1000

_AT_ONCE = 100

Interval = tuple[float, float]


class Column(NamedTuple):
    """Values of some of the samples.

    Attributes:
        rows: which samples, int64 ``(k,)``.
        values: float64 ``(k,)``.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def known(cls, values: NDArray[np.float64], members: NDArray[np.bool_] | None = None) -> "Column":
        """Those of ``values``, one for each sample, that are no NaN and belong to ``members``."""
        chosen = ~np.isnan(values)
        rows = np.flatnonzero(chosen if members is None else chosen & members)
        return cls(rows, values[rows])

    @property
    def mean(self) -> float | None:
        """None without values."""
        return float(self.values.mean()) if len(self.rows) else None


class Resampled(NamedTuple):
    """Sums over resamples.

    Attributes:
        sums: of a column's values in each resample, ``(RESAMPLES,)``, by the column's key.
        counts: how many values these are sums of, likewise.
    """

    sums: dict[Hashable, NDArray[np.float64]]
    counts: dict[Hashable, NDArray[np.float64]]

    def means(self, key: Hashable) -> NDArray[np.float64]:
        """A column's mean in each resample, NaN in those without any of its samples."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means: NDArray[np.float64] = self.sums[key] / self.counts[key]
        return means


def resample(columns: Mapping[Hashable, Column], clusters: ArrayLike) -> Resampled:
    """Draws whole clusters with replacement, as many as there are, 1,000 times; the same draws for all columns.

    Args:
        columns: what to sum; memory grows with their values, not with columns times samples.
        clusters: for each sample the number of its cluster, ``(samples,)``: copies of a photo go together.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    from scipy import sparse

    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    n = int(cluster.max()) + 1
    keys = list(columns)
    lengths = [len(columns[key].rows) for key in keys]
    rows = cluster[np.concatenate([columns[key].rows for key in keys])]
    places = np.repeat(np.arange(len(keys)), lengths)
    values = np.concatenate([columns[key].values for key in keys])
    # Entries of one cluster are added up.
    shape = (n, len(keys))
    sums = sparse.csr_matrix((values, (rows, places)), shape).T.tocsr()
    counts = sparse.csr_matrix((np.ones(len(rows)), (rows, places)), shape).T.tocsr()
    random = np.random.default_rng(0)
    found: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = random.integers(0, n, (_AT_ONCE, n)) + n * np.arange(_AT_ONCE)[:, None]
        times = np.bincount(drawn.ravel(), minlength=_AT_ONCE * n).reshape(_AT_ONCE, n).T.astype(np.float64)
        found.append((sums @ times, counts @ times))
    all_sums, all_counts = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return Resampled(dict(zip(keys, all_sums, strict=True)), dict(zip(keys, all_counts, strict=True)))


def percentiles(found: NDArray[np.float64]) -> Interval | None:
    """The 95 % interval of a figure that was computed in each resample; None where it could not be."""
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
