"""A table of predictions -> the figures of results.json. Pure NumPy; no model, no trainer."""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agr_lightning.data.samples import Samples
from agr_lightning.files import Json
from agr_lightning.labels import AGE_BANDS, GENDERS, MISSING, RACES, age_band

# Level of the age interval of each prediction, and of the intervals of the reported figures.
AGE_INTERVAL_LEVEL = 0.8
FIGURE_LEVEL = 0.95

RESULTS_FILE = "results.json"

_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 100

METRICS = ("age_mae", "age_cs5", "gender_acc", "race_acc")


class Table(NamedTuple):
    """Labels and predictions of a test set, one row a sample, as ``metrics.PredictionTable`` gathers them.

    Attributes:
        place: in the test set, int64 ``(n,)``.
        age: label, years, float64 ``(n,)``.
        gender: label, int64 ``(n,)``, or ``MISSING``.
        race: label, int64 ``(n,)``, or ``MISSING``.
        predicted_age: years, float64 ``(n,)``; NaN where the network has no age head.
        gender_probabilities: float64 ``(n, 2)``; NaN likewise.
        race_probabilities: float64 ``(n, 5)``; NaN likewise.
    """

    place: NDArray[np.int64]
    age: NDArray[np.float64]
    gender: NDArray[np.int64]
    race: NDArray[np.int64]
    predicted_age: NDArray[np.float64]
    gender_probabilities: NDArray[np.float64]
    race_probabilities: NDArray[np.float64]

    @classmethod
    def from_rows(cls, rows: NDArray[np.float32]) -> "Table":
        """Names the columns of ``metrics.PredictionTable``'s result."""
        r = rows.astype(np.float64)
        labels = [r[:, i].astype(np.int64) for i in (0, 2, 3)]
        return cls(labels[0], r[:, 1], labels[1], labels[2], r[:, 4], r[:, 5:7], r[:, 7:12])

    def per_sample(self) -> dict[str, NDArray[np.float64]]:
        """For each of ``METRICS`` a value per sample, of which the metric is the mean; NaN where unknown."""
        error = np.abs(self.predicted_age - self.age)
        return {
            "age_mae": error,
            "age_cs5": np.where(np.isnan(error), np.nan, error <= 5),
            "gender_acc": _hits(self.gender_probabilities, self.gender),
            "race_acc": _hits(self.race_probabilities, self.race),
        }


@dataclass(frozen=True)
class RunFacts:
    """What results.json says about the run beside the figures; ``model`` are the arguments of ``AGRNetwork``."""

    checkpoint: str
    epoch: int | None
    model: dict[str, Json]
    parameters: int
    age_margin: float | None
    training_seconds: float | None = None


def interval_margin(errors: NDArray[np.floating]) -> float:
    """Half the width of the age interval: a quantile of the absolute errors on validation images.

    Split conformal prediction: the ``ceil((n + 1) * level)``-th smallest of n errors covers a new one with at
    least that probability (Lei et al., "Distribution-Free Predictive Inference for Regression", 2018).

    Args:
        errors: absolute errors in years, ``(n,)``.

    Returns:
        Years; NaN when there are too few errors to tell.
    """
    n = len(errors)
    rank = math.ceil((n + 1) * AGE_INTERVAL_LEVEL)
    return float(np.sort(errors)[rank - 1]) if rank <= n else math.nan


def make_results(table: Table, samples: Samples, facts: RunFacts) -> dict[str, Json]:
    """The content of results.json.

    Args:
        table: the predictions.
        samples: the test set, of which ``table.place`` are places.
        facts: about the run.

    Returns:
        ``metrics`` with their 95 % intervals, ``groups``, ``n``, and the facts. A figure that cannot be
        computed is None.
    """
    chosen = samples.take(table.place)
    values = table.per_sample()
    intervals = bootstrap_intervals(values, chosen.group)
    metrics: dict[str, Json] = {name: _mean(column) for name, column in values.items()}
    metrics["intervals"] = {name: list(bounds) if bounds else None for name, bounds in intervals.items()}
    return {
        "n": len(chosen),
        "metrics": metrics,
        "age_interval": _coverage(table, facts.age_margin),
        "groups": list(_groups(table, values)),
        "checkpoint": facts.checkpoint,
        "epoch": facts.epoch,
        "backbone": facts.model["backbone"],
        "model": facts.model,
        "parameters": facts.parameters,
        "training_seconds": facts.training_seconds,
        "test_set": _digest(chosen),
    }


def bootstrap_intervals(
    values: dict[str, NDArray[np.float64]], clusters: ArrayLike
) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap intervals of means, copies of a photo resampled together.

    Args:
        values: by metric, a value per sample; NaN where unknown.
        clusters: for each sample the number of its group.

    Returns:
        By metric the bounds of its 95 % interval, or None for fewer than two groups with a known value; the same
        for the same input, the resamples being seeded. A share of exactly 0 or 1, in which all resamples agree,
        gets Wilson's score interval over the groups instead. Source: Efron and Tibshirani, "An Introduction to
        the Bootstrap", 1993, chapters 8 and 13.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    n = int(cluster.max()) + 1
    # (clusters, metrics): the sum of the known values in each cluster, and how many there are.
    known = {name: ~np.isnan(column) for name, column in values.items()}
    sums = np.stack([np.bincount(cluster, np.where(known[k], v, 0.0), n) for k, v in values.items()], axis=1)
    counts = np.stack([np.bincount(cluster, known[k], n) for k in values], axis=1)
    random = np.random.default_rng(0)
    means = []
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        times = random.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES_AT_ONCE).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append((times @ sums) / (times @ counts))
    tail = (1 - FIGURE_LEVEL) / 2
    intervals: dict[str, tuple[float, float] | None] = {}
    for i, name in enumerate(values):
        found = np.concatenate(means)[:, i]
        found = found[~np.isnan(found)]
        if not len(found) or (counts[:, i] > 0).sum() < 2:
            intervals[name] = None
        elif found.min() == found.max() and found[0] in (0, 1):
            intervals[name] = _wilson(float(found[0]), int((counts[:, i] > 0).sum()))
        else:
            low, high = np.quantile(found, [tail, 1 - tail]).tolist()
            intervals[name] = (low, high)
    return intervals


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson, JASA 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _groups(table: Table, values: dict[str, NDArray[np.float64]]) -> list[dict[str, Json]]:
    bands = np.array([age_band(age) for age in table.age], dtype=np.int64)
    groups: list[dict[str, Json]] = []
    for attribute, codes, names in (
        ("gender", table.gender, GENDERS),
        ("race", table.race, RACES),
        ("age_band", bands, AGE_BANDS),
    ):
        for code, name in enumerate(names):
            members = codes == code
            if members.any():
                figures: dict[str, Json] = {metric: _mean(column[members]) for metric, column in values.items()}
                head: dict[str, Json] = {"attribute": attribute, "value": name, "n": int(members.sum())}
                groups.append(head | figures)
    return groups


def _coverage(table: Table, margin: float | None) -> Json:
    error = np.abs(table.predicted_age - table.age)
    if margin is None or math.isnan(margin) or np.isnan(error).all():
        return None
    return {"level": AGE_INTERVAL_LEVEL, "margin": margin, "coverage": float((error <= margin).mean())}


def _digest(samples: Samples) -> str:
    """A fingerprint of the test set, to tell whether two runs were tested on the same images."""
    lines = sorted(f"{s.name} {s.age} {s.gender} {s.race}\n" for s in samples)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _hits(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    unknown = np.isnan(probabilities).any(1) | (labels == MISSING)
    return np.where(unknown, np.nan, np.nan_to_num(probabilities).argmax(1) == labels)


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
