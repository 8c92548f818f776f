"""The metrics of a test, one row each, and the table of predictions that they are computed from.

To add a metric, add a row to ``METRICS``: results.json, the report and the model card take it from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame

from agr_lightning.labels import CLASSES, MISSING, TASKS, ClassTask, Task
from agr_lightning.models.calibration import ADULT

Values = NDArray[np.float64]

# Columns of probabilities, in the order of the classes' codes.
PROBABILITIES = {task: [f"prob_{name}" for name in names] for task, names in CLASSES.items()}
TABLE_COLUMNS = (
    *("index", *TASKS, "predicted_age", "age_low", "age_high", *chain(*PROBABILITIES.values())),
    "prob_under_18",
)

CONFIDENCE_BINS = 15  # of equal width, in which calibration is measured


def prediction_table(rows: ArrayLike) -> DataFrame:
    """A row a face, of rows in the order of ``TABLE_COLUMNS``: its index in the test set, its labels, its predictions.

    Where they are unknown, labels are ``MISSING`` and predictions NaN.
    """
    table = DataFrame(np.asarray(rows, np.float64), columns=list(TABLE_COLUMNS))
    return table.astype(dict.fromkeys(("index", *CLASSES), np.int64))


def error(table: DataFrame) -> Values:
    """Predicted minus labelled age of each face, years, ``(n,)``; NaN where it is unknown."""
    return np.asarray((table["predicted_age"] - table["age"]).where(table["age"] != MISSING))


def hits(table: DataFrame, task: ClassTask) -> Values:
    """1 where the most probable class is the labelled one, 0 where not, NaN where either is unknown, ``(n,)``."""
    unknown = np.isnan(confidence(table, task)) | (table[task] == MISSING)
    return np.where(unknown, np.nan, predicted(table, task) == table[task])


def predicted(table: DataFrame, task: ClassTask) -> NDArray[np.int64]:
    """The code of the most probable class, ``(n,)``; 0 where it is unknown."""
    return np.asarray(table[PROBABILITIES[task]].fillna(0).to_numpy().argmax(1))


def confidence(table: DataFrame, task: ClassTask) -> Values:
    """The probability of the most probable class, ``(n,)``; NaN where it is unknown."""
    return np.asarray(table[PROBABILITIES[task]].to_numpy().max(1))


def confidence_bin(confidence: Values) -> NDArray[np.int64]:
    """The bins that probabilities lie in, ``(n,)``."""
    return np.minimum((np.nan_to_num(confidence) * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)


def _within_5_years(table: DataFrame) -> Values:
    return np.where(np.isnan(error(table)), np.nan, np.abs(error(table)) <= 5)


def _covered(table: DataFrame) -> Values:
    unknown = table["age_low"].isna() | (table["age"] == MISSING)
    return np.where(unknown, np.nan, table["age"].between(table["age_low"], table["age_high"]))


def _hits_by_class(table: DataFrame, task: ClassTask) -> Values:
    members = table[task].to_numpy()[:, None] == np.arange(len(CLASSES[task]))
    return np.where(members, hits(table, task)[:, None], np.nan)


def minors(table: DataFrame) -> Values:
    """1 for faces labelled below 18 years, 0 for others, NaN without that label or its probability, ``(n,)``."""
    unknown = table["prob_under_18"].isna() | (table["age"] == MISSING)
    return np.where(unknown, np.nan, table["age"] < ADULT)


def _overconfidence_by_bin(table: DataFrame, task: ClassTask | None = None) -> Values:
    """Probability minus what happened, in the column of its bin: of the predicted class, or of being under 18."""
    sure = table["prob_under_18"].to_numpy() if task is None else confidence(table, task)
    right = minors(table) if task is None else hits(table, task)
    members = confidence_bin(sure)[:, None] == np.arange(CONFIDENCE_BINS)
    return np.where(members, (sure - right)[:, None], np.nan)


def _mean(sums: Values, counts: Values) -> Values:
    return np.asarray(sums[0] / counts[0])


def _root(sums: Values, counts: Values) -> Values:
    return np.sqrt(_mean(sums, counts))


def _mean_recall(sums: Values, counts: Values) -> Values:
    """Over the classes that have samples."""
    return np.asarray(np.where(counts > 0, sums / counts, 0).sum(0) / (counts > 0).sum(0))


def _calibration_error(sums: Values, counts: Values) -> Values:
    """Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3."""
    return np.asarray(np.abs(sums).sum(0) / counts.sum(0))


@dataclass(frozen=True)
class Metric:
    """How a metric is computed and written.

    Attributes:
        name: in results.json; it begins with the task.
        label: for readers, as are description and unit: years, or % for a share.
        values: what of a table is summed, ``(n,)`` or ``(n, columns)``; NaN where unknown.
        formula: sums of these columns and counts of their values, each ``(columns, resamples)`` -> the metric in each
            resample, ``(resamples,)``; NaN where it cannot be computed.
        worst: the bad end, of a metric by which groups are ranked; such a metric is also by_group and headline.
        by_group, headline, signed: whether it is computed for each group, is shown first, has a sign if positive.
        missing: why it is unknown although the network has the task and images have the label.
    """

    name: str
    label: str
    description: str
    unit: Literal["years", "%"]
    values: Callable[[DataFrame], Values]
    formula: Callable[[Values, Values], Values] = _mean
    worst: Literal["highest", "lowest"] | None = None
    by_group: bool = False
    headline: bool = False
    signed: bool = False
    missing: str = ""

    @property
    def task(self) -> Task:
        return next(task for task in TASKS if self.name.startswith(task))

    @property
    def is_proportion(self) -> bool:
        """Whether it counts some faces among others."""
        return self.unit == "%" and self.formula is _mean

    def reason(self, tasks: Sequence[Task], table: DataFrame) -> str:
        """Why a network with these tasks has no value of it for this table."""
        if self.task not in tasks:
            return f"the network does not predict {self.task}"
        return self.missing if (table[self.task] != MISSING).any() else f"no test image has a label for {self.task}"

    def text(self, value: float | None, interval: Sequence[float] | None = None) -> str:
        """A value with its unit and, in brackets, its interval; nothing where there is no value."""
        if value is None:
            return ""
        text = f"{100 * value:.1f} %" if self.unit == "%" else f"{value:{'+' if self.signed else ''}.2f} years"
        return f"{text} ({self.ends(interval)})" if interval else text

    def ends(self, interval: Sequence[float] | None) -> str:
        """The ends of an interval without their unit; nothing where there is none."""
        scale, digits = (100, 1) if self.unit == "%" else (1, 2)
        return " to ".join(f"{scale * end:.{digits}f}" for end in interval or ())


def _of_classes(task: ClassTask) -> list[Metric]:
    right, recalls = f"images whose {task} is right", f"mean of the {len(CLASSES[task])} classes' recalls"
    by_class, by_bin = partial(_hits_by_class, task=task), partial(_overconfidence_by_bin, task=task)
    distance = "mean distance between probability and accuracy"
    return [
        Metric(f"{task}_acc", f"{task} accuracy", right, "%", partial(hits, task=task), worst="lowest"),
        Metric(f"{task}_balanced_acc", f"{task} balanced accuracy", recalls, "%", by_class, _mean_recall),
        Metric(f"{task}_ece", f"{task} calibration error", distance, "%", by_bin, _calibration_error),
    ]


_NO_DISTRIBUTION = "the network gives no distribution of ages"
_DISTANCE = "mean distance between the probability of being under 18 and the share of minors"
_UNCALIBRATED = "there were too few validation images to calibrate age intervals"
_WITHIN = "images whose label lies in the age interval"
_OF_AGE = [
    Metric("age_mae", "age MAE", "mean absolute error of the age", "years", lambda t: abs(error(t)), worst="highest"),
    Metric("age_rmse", "age RMSE", "root of the mean squared error", "years", lambda t: error(t) ** 2, _root),
    Metric("age_bias", "age bias", "mean of predicted minus labelled age", "years", error, by_group=True, signed=True),
    Metric("age_cs5", "within 5 years", "images with an error of at most 5 years", "%", _within_5_years, headline=True),
    Metric("age_coverage", "interval coverage", _WITHIN, "%", _covered, by_group=True, missing=_UNCALIBRATED),
    Metric(
        *("age_under_18_ece", "under-18 calibration error", _DISTANCE, "%", _overconfidence_by_bin, _calibration_error),
        missing=_NO_DISTRIBUTION,
    ),
]

METRICS = {metric.name: metric for metric in (*_OF_AGE, *_of_classes("gender"), *_of_classes("race"))}

RANKED = [metric for metric in METRICS.values() if metric.worst]
BY_GROUP = [metric for metric in METRICS.values() if metric.by_group or metric.worst]
HEADLINE = [metric for metric in METRICS.values() if metric.headline or metric.worst]
