"""A table of predictions -> the content of results.json. No model, no trainer."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pandas import Categorical, DataFrame, Series

from agr_lightning.evaluation import metric_table
from agr_lightning.evaluation.metric_table import BY_GROUP, HEADLINE, METRICS, RANKED, Metric, Values
from agr_lightning.labels import AGE_BANDS, CLASSES, ClassTask, age_band
from agr_lightning.models.calibration import ADULT, AGE_INTERVAL_LEVEL

# Smaller groups are neither ranked nor compared, and those of two attributes are not listed.
SMALLEST_GROUP = 30

_ATTRIBUTES = (["gender"], ["race"], ["age_band"], ["gender", "race"], ["race", "age_band"])

RESAMPLES = 1000

Interval = tuple[float, float]
Entry = dict[str, Any]  # in results.json

# Attribute and value; of two attributes "attribute x attribute" and "value x value".
Group = tuple[str, str]
_ALL: Group = ("", "")  # of the whole table


def make_results(table: DataFrame, samples: DataFrame, facts: Mapping[str, Any]) -> Entry:
    """The content of results.json.

    Args:
        table: predictions; see ``metric_table.prediction_table``.
        samples: the test set, with columns name, age, gender, race, and group: its numbers are equal for copies of a
            photo. ``table["index"]`` says which of its rows were predicted.
        facts: checkpoint (a shipped name or a path from the run folder), epoch, network (``NetworkConfig.to_dict()``),
            parameters, training_seconds, temperatures (of gender and race), adult_threshold,
            under_18 (slope and intercept).

    Returns:
        Metrics with 95 % intervals, groups, and the facts. What cannot be computed is None; ``reasons`` says why.
    """
    chosen = samples.iloc[table["index"]]
    groups = {_ALL: np.arange(len(table)), **dict(_find_groups(table))}
    columns = {metric: metric.values(table).reshape(len(table), -1) for metric in METRICS.values()}
    photos = chosen["group"].to_numpy()
    weights = resample(photos)
    estimates = {
        group: {
            metric.name: _estimate(metric, columns[metric][rows], weights[rows], photos[rows], group == _ALL)
            for metric in (METRICS.values() if group == _ALL else BY_GROUP)
        }
        for group, rows in groups.items()
    }
    whole, *entries = (
        {"attribute": group[0], "value": group[1], "n": len(groups[group])}
        | {name: estimate.value for name, estimate in found.items()}
        | {"intervals": {name: estimate.interval for name, estimate in found.items()}}
        for group, found in estimates.items()
    )
    metrics = {name: whole[name] for name in (*METRICS, "intervals")}
    network = facts["network"]
    return {
        "n": len(table),
        "metrics": metrics,
        "reasons": {name: METRICS[name].reason(network["tasks"], table) for name in METRICS if metrics[name] is None},
        "classes": {task: _classes(table, task) for task in CLASSES},
        "calibration": dict(_calibration(table, facts)),
        "age_interval": _age_interval(table, estimates[_ALL]["age_coverage"]),
        "minors": _minors(table, facts["adult_threshold"]),
        "smallest_group": SMALLEST_GROUP,
        "groups": entries,
        "worst_groups": {metric.name: _worst_group(entries, metric, estimates) for metric in RANKED},
        "gaps": [gap for metric in RANKED for gap in _gaps(entries, metric, estimates)],
        **{name: facts[name] for name in ("checkpoint", "epoch", "network", "parameters", "training_seconds")},
        "backbone": network["backbone"],
        "test_set": _fingerprint(chosen),
    }


def summary(results: Mapping[str, Any]) -> str:
    """One line for the terminal: the headline metrics with their intervals."""
    values, shown = results["metrics"], [metric for metric in HEADLINE if results["metrics"][metric.name] is not None]
    texts = [f"{metric.label} {metric.text(values[metric.name], values['intervals'][metric.name])}" for metric in shown]
    return f"Test on {results['n']:,} images, 95 % intervals: " + (", ".join(texts) or "none has a label")


class Estimate(NamedTuple):
    """A metric of n images: its value and 95 % interval, None where unknown, and its value in each resample."""

    value: float | None
    interval: Interval | None
    draws: NDArray[np.float64]
    n: int


Estimates = Mapping[Group, Mapping[str, Estimate]]


def _estimate(metric: Metric, values: Values, weights: Values, photos: NDArray[np.int64], whole: bool) -> Estimate:
    """Computes a metric of the whole table, or of a group, from what is summed for it in all and in the resamples."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = metric.formula(np.where(known, values, 0).T @ weights, known.T @ weights)
    value, draws = float(found[0]), found[1:]
    if math.isnan(value):
        return Estimate(None, None, draws, 0)
    photos, bounds = photos[known.any(1)], percentiles(draws)
    if not whole:
        if metric.is_proportion:
            bounds = wilson(value, len(photos))
        elif len(photos) < 2:
            bounds = None
    elif bounds and bounds[0] == bounds[1]:
        # All resamples agree: a share of none or of all, or too few photos to tell.
        n = len(np.unique(photos))
        bounds = wilson(value, n) if metric.is_proportion and n > 1 else None
    return Estimate(value, bounds, draws, int(known.any(1).sum()))


def _find_groups(table: DataFrame) -> Iterator[tuple[Group, NDArray[np.int64]]]:
    """Every group that has images and, of two attributes, enough of them; and its rows."""
    codes = {"gender": table["gender"], "race": table["race"], "age_band": table["age"].map(age_band)}
    names = CLASSES | {"age_band": AGE_BANDS}
    attributes = DataFrame({name: Categorical.from_codes(codes[name], names[name]) for name in codes})
    for chosen in _ATTRIBUTES:
        for value, members in attributes.groupby(chosen, observed=True):
            if len(chosen) == 1 or len(members) >= SMALLEST_GROUP:
                yield (" x ".join(chosen), " x ".join(value)), members.index.to_numpy()


def _ranked(entries: Sequence[Entry], metric: Metric, estimates: Estimates) -> list[Entry]:
    """The groups in which enough images have the label, the best first."""
    large = [each for each in entries if estimates[each["attribute"], each["value"]][metric.name].n >= SMALLEST_GROUP]
    return sorted(large, key=lambda entry: float(entry[metric.name]), reverse=metric.worst == "lowest")


def _worst_group(entries: Sequence[Entry], metric: Metric, estimates: Estimates) -> Entry | None:
    ranked = _ranked(entries, metric, estimates)
    if not ranked:
        return None
    facts = {name: ranked[-1][name] for name in ("attribute", "value", "n", metric.name)}
    return facts | {"interval": ranked[-1]["intervals"][metric.name]}


def _gaps(entries: Sequence[Entry], metric: Metric, estimates: Estimates) -> Iterator[Entry]:
    """For each attribute the distance between the best and the worst group, with its 95 % interval.

    The two groups are those of the whole test set, so that the interval is of one difference, not of a maximum.
    """
    for attribute in dict.fromkeys(entry["attribute"] for entry in entries):
        ranked = _ranked([entry for entry in entries if entry["attribute"] == attribute], metric, estimates)
        if len(ranked) < 2:
            continue
        best, worst = ranked[0], ranked[-1]
        high, low = (worst, best) if metric.worst == "highest" else (best, worst)
        draws = [estimates[attribute, group["value"]][metric.name].draws for group in (high, low)]
        gap = {"metric": metric.name, "attribute": attribute, "best": best["value"], "worst": worst["value"]}
        yield gap | {"gap": high[metric.name] - low[metric.name], "interval": percentiles(draws[0] - draws[1])}


def _classes(table: DataFrame, task: ClassTask) -> Entry | None:
    """Counts of labelled against predicted classes, and precision, recall and F1 of each class."""
    known, n = ~np.isnan(metric_table.hits(table, task)), len(CLASSES[task])
    if not known.any():
        return None
    pairs = table[task][known] * n + metric_table.predicted(table, task)[known]
    counts = np.bincount(pairs, minlength=n * n).reshape(n, n)
    right, labelled, chosen = Series(counts.diagonal()), counts.sum(1), counts.sum(0)
    scores = {"precision": right / chosen, "recall": right / labelled, "f1": 2 * right / (labelled + chosen)}
    classes = DataFrame({"class": CLASSES[task], "n": labelled, **scores}).astype(object)
    return {"classes": classes.where(classes.notna(), None).to_dict("records"), "confusion": counts.tolist()}


def _calibration(table: DataFrame, facts: Mapping[str, Any]) -> Iterator[tuple[str, Entry | None]]:
    """What was fitted, and how often it is so where the network is so and so sure: of its classes, and of minors."""
    for task in CLASSES:
        found = {"confidence": metric_table.confidence(table, task), "accuracy": metric_table.hits(table, task)}
        yield task, _reliability(DataFrame(found), {"temperature": facts["temperatures"][task]})
    found = {"probability": table["prob_under_18"].to_numpy(), "minors": metric_table.minors(table)}
    yield "under_18", _reliability(DataFrame(found), facts["under_18"])


def _reliability(faces: DataFrame, fitted: Entry) -> Entry | None:
    """Means of both columns, probability and outcome, in each bin of the first; None where nothing is known."""
    faces = faces.dropna()
    if faces.empty:
        return None
    bins = faces.groupby(metric_table.confidence_bin(faces.iloc[:, 0].to_numpy()))
    return fitted | {"bins": bins.mean().assign(n=bins.size()).to_dict("records")}


def _age_interval(table: DataFrame, coverage: Estimate) -> Entry | None:
    """Level, measured coverage with its interval, and mean width in years of the predictions' age intervals."""
    if coverage.value is None:
        return None
    width = float((table["age_high"] - table["age_low"]).mean())
    return {"level": AGE_INTERVAL_LEVEL, "coverage": coverage.value, "interval": coverage.interval, "width": width}


def _minors(table: DataFrame, careful: float | None) -> Entry | None:
    """Telling minors from adults by predicted age: at 18 years, and where hardly any minor was missed in validation."""
    table = table[~np.isnan(metric_table.error(table))]
    if table.empty:
        return None
    minor = table["age"] < ADULT
    found: Entry = {"age": ADULT, "minors": int(minor.sum()), "adults": int((~minor).sum())}
    for name, threshold in (("default", float(ADULT)), ("careful", careful)):
        if threshold is None:
            found[name] = None
            continue
        found[name] = {"threshold": threshold}
        for share, members in (("recall", minor), ("false_positive_rate", ~minor)):
            taken = table["predicted_age"][members] < threshold
            value = float(taken.mean()) if len(taken) else None
            found[name] |= {share: value, f"{share}_interval": None if value is None else wilson(value, len(taken))}
    return found


def _fingerprint(samples: DataFrame) -> str:
    """Equal for equal test sets, so that runs can be compared."""
    labels = samples[["name", "age", "gender", "race"]].itertuples(index=False)
    lines = sorted(f"{name} {age:g} {gender} {race}\n" for name, age, gender, race in labels)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


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
    if np.isnan(found).all():
        return None
    low, high = np.nanquantile(found, [0.025, 0.975]).tolist()
    return low, high


def wilson(share: float, n: int) -> Interval:
    """Wilson's 95 % score interval of a share of n (Wilson, JASA 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)
