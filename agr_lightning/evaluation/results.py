"""A table of predictions -> the content of results.json. Pure NumPy; no model, no trainer."""

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from agr_lightning.data.samples import Samples
from agr_lightning.evaluation.bootstrap import Column, Resampled, percentiles, resample, wilson
from agr_lightning.evaluation.groups import (
    SMALLEST_GROUP,
    describe_groups,
    find_groups,
    gaps,
    group_columns,
    worst_groups,
)
from agr_lightning.evaluation.table import Table
from agr_lightning.files import Json
from agr_lightning.labels import CLASSES, ClassTask
from agr_lightning.models.calibration import ADULT, AGE_INTERVAL_LEVEL

METRICS = ("age_mae", "age_cs5", "gender_acc", "race_acc")

# Bins of confidence in which calibration is measured.
CONFIDENCE_BINS = 15

_SHARES = ("age_cs5", "gender_acc", "race_acc", "age_coverage")


@dataclass(frozen=True)
class RunFacts:
    """What results.json says about the run beside the figures.

    ``checkpoint`` is a path from the run folder, ``model`` the arguments of ``AGRNetwork``.
    """

    checkpoint: str
    epoch: int | None
    model: dict[str, Json]
    parameters: int
    temperatures: dict[str, float]
    adult_threshold: float | None = None
    training_seconds: float | None = None


def make_results(table: Table, samples: Samples, facts: RunFacts) -> dict[str, Json]:
    """The content of results.json.

    Args:
        table: the predictions.
        samples: the test set, of which ``table.place`` are places.
        facts: about the run.

    Returns:
        Figures with their 95 % intervals, groups, and the facts. A figure that cannot be computed is None, and
        ``reasons`` says why.
    """
    chosen = samples.take(table.place)
    groups = find_groups(table)
    of_groups = group_columns(table, groups)
    columns = _columns(table) | of_groups
    resampled = resample(columns, chosen.group)
    entries = describe_groups(groups, of_groups, resampled)
    metrics, intervals = _metrics(columns, resampled, chosen.group)
    return {
        "n": len(chosen),
        "metrics": {**metrics, "intervals": intervals},
        "reasons": _reasons(table, metrics),
        "classes": {task: _classes(table, task) for task in CLASSES},
        "calibration": {task: _reliability(table, task, facts.temperatures[task]) for task in CLASSES},
        "age_interval": _age_interval(table, metrics, intervals),
        "minors": _minors(table, facts.adult_threshold),
        "smallest_group": SMALLEST_GROUP,
        "groups": list(entries),
        "worst_groups": worst_groups(entries),
        "gaps": gaps(entries, resampled),
        "checkpoint": facts.checkpoint,
        "epoch": facts.epoch,
        "backbone": facts.model["backbone"],
        "model": facts.model,
        "parameters": facts.parameters,
        "training_seconds": facts.training_seconds,
        "test_set": _digest(chosen),
    }


# ---------------------------------------------------------------------- the whole test set


def _columns(table: Table) -> dict[Hashable, Column]:
    """The columns from whose sums the metrics are computed."""
    columns: dict[Hashable, Column] = {name: Column.known(values) for name, values in table.per_sample().items()}
    columns["age_squared"] = Column.known(table.error() ** 2)
    for task, classes in CLASSES.items():
        hits = table.hits(task)
        probabilities, labels, known = table.classifier(task)
        for code in range(len(classes)):
            columns[task, "class", code] = Column.known(hits, labels == code)
        confidence = np.nan_to_num(probabilities).max(1)
        place = _confidence_bin(confidence)
        for each in range(CONFIDENCE_BINS):
            columns[task, "bin", each] = Column.known(np.where(known, confidence - hits, np.nan), place == each)
    return columns


def _confidence_bin(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)


def _metrics(
    columns: dict[Hashable, Column], resampled: Resampled, clusters: NDArray[np.int64]
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Each metric and its interval, by one formula for both."""
    whole = Resampled(
        {key: np.array([column.values.sum()]) for key, column in columns.items()},
        {key: np.array([float(len(column.rows))]) for key, column in columns.items()},
    )
    formulas: dict[str, Callable[[Resampled], NDArray[np.float64]]] = {
        name: partial(Resampled.means, key=name)
        for name in ("age_mae", "age_bias", "age_cs5", "age_coverage", "gender_acc", "race_acc")
    }
    formulas["age_rmse"] = lambda sums: np.sqrt(sums.means("age_squared"))
    for task, classes in CLASSES.items():
        keys = [(task, "class", code) for code in range(len(classes)) if len(columns[task, "class", code].rows)]
        formulas[f"{task}_balanced_acc"] = partial(_balanced, keys=keys)
        formulas[f"{task}_ece"] = partial(_calibration_error, task=task)
    metrics: dict[str, Json] = {}
    intervals: dict[str, Json] = {}
    for name, formula in formulas.items():
        value = float(formula(whole)[0])
        known = not math.isnan(value)
        bounds = percentiles(formula(resampled)) if known else None
        if bounds and bounds[0] == bounds[1]:
            # All resamples agree: a share of none or of all, or too few photos to tell.
            photos = len(np.unique(clusters[columns[name].rows])) if name in _SHARES else 0
            bounds = wilson(value, photos) if photos > 1 else None
        metrics[name] = value if known else None
        intervals[name] = list(bounds) if bounds else None
    return metrics, intervals


def _balanced(sums: Resampled, keys: Sequence[Hashable]) -> NDArray[np.float64]:
    """The mean of the classes' recalls, over the classes that have samples."""
    recalls = np.stack([sums.means(key) for key in keys]) if keys else np.full((1, 1), np.nan)
    known = ~np.isnan(recalls)
    with np.errstate(invalid="ignore"):
        balanced: NDArray[np.float64] = np.where(known, recalls, 0).sum(0) / known.sum(0)
    return balanced


def _calibration_error(sums: Resampled, task: str) -> NDArray[np.float64]:
    """Expected calibration error: the mean distance between confidence and accuracy over bins of confidence.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    bins = [(task, "bin", each) for each in range(CONFIDENCE_BINS)]
    with np.errstate(invalid="ignore"):
        error: NDArray[np.float64] = np.abs(np.stack([sums.sums[key] for key in bins])).sum(0) / np.stack(
            [sums.counts[key] for key in bins]
        ).sum(0)
    return error


def _reasons(table: Table, metrics: dict[str, Json]) -> dict[str, Json]:
    reasons: dict[str, Json] = {}
    for name, value in metrics.items():
        if value is None:
            task = name.split("_")[0]
            predicted = table.predicted_age if task == "age" else table.classifier(task)[0]
            if np.isnan(predicted).all():
                reasons[name] = f"the network does not predict {task}"
            elif name == "age_coverage":
                reasons[name] = "there were too few validation images to calibrate age intervals"
            else:
                reasons[name] = f"no test image has a {task} label"
    return reasons


# ---------------------------------------------------------------------- classes, calibration, intervals, minors


def _classes(table: Table, task: ClassTask) -> Json:
    """Counts of labelled against predicted classes, and precision, recall and F1 of each class."""
    probabilities, labels, known = table.classifier(task)
    if not known.any():
        return None
    n = len(CLASSES[task])
    counts = np.bincount(labels[known] * n + probabilities[known].argmax(1), minlength=n * n).reshape(n, n)
    classes: list[Json] = []
    for code, name in enumerate(CLASSES[task]):
        right, labelled, predicted = int(counts[code, code]), int(counts[code].sum()), int(counts[:, code].sum())
        classes.append(
            {
                "class": name,
                "n": labelled,
                "precision": right / predicted if predicted else None,
                "recall": right / labelled if labelled else None,
                "f1": 2 * right / (labelled + predicted) if labelled + predicted else None,
            }
        )
    return {"classes": classes, "confusion": [[int(count) for count in row] for row in counts]}


def _reliability(table: Table, task: ClassTask, temperature: float) -> Json:
    """How often the classifier is right where it is so and so sure."""
    probabilities, _, known = table.classifier(task)
    if not known.any():
        return None
    confidence, hits = probabilities[known].max(1), table.hits(task)[known]
    place = _confidence_bin(confidence)
    bins: list[Json] = [
        {"n": int(m.sum()), "confidence": float(confidence[m].mean()), "accuracy": float(hits[m].mean())}
        for each in range(CONFIDENCE_BINS)
        if (m := place == each).any()
    ]
    return {"temperature": temperature, "bins": bins}


def _age_interval(table: Table, metrics: dict[str, Json], intervals: dict[str, Json]) -> Json:
    """Level, measured coverage with its interval, and mean width in years of the predictions' age intervals."""
    known = ~np.isnan(table.age_low)
    if not known.any():
        return None
    return {
        "level": AGE_INTERVAL_LEVEL,
        "coverage": metrics["age_coverage"],
        "interval": intervals["age_coverage"],
        "width": float((table.age_high - table.age_low)[known].mean()),
    }


def _minors(table: Table, careful: float | None) -> Json:
    """Telling minors from adults by predicted age: at 18 years, and where hardly any minor was missed in validation."""
    if np.isnan(table.predicted_age).all():
        return None
    minor = table.age < ADULT
    points: dict[str, Json] = {}
    for name, threshold in (("default", float(ADULT)), ("careful", careful)):
        points[name] = None
        if threshold is not None:
            taken = table.predicted_age < threshold
            points[name] = {
                "threshold": threshold,
                **_share("recall", taken[minor]),
                **_share("false_positive_rate", taken[~minor]),
            }
    return {"age": ADULT, "minors": int(minor.sum()), "adults": int((~minor).sum()), **points}


def _share(name: str, hits: NDArray[np.bool_]) -> dict[str, Json]:
    share = float(hits.mean()) if len(hits) else None
    return {name: share, f"{name}_interval": None if share is None else list(wilson(share, len(hits)))}


def _digest(samples: Samples) -> str:
    """A fingerprint of the test set, to tell whether two runs were tested on the same images."""
    lines = sorted(f"{s.name} {s.age} {s.gender} {s.race}\n" for s in samples)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]
