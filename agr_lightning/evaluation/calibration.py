"""Validation predictions -> what ``models.calibration.Calibration`` applies."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agr_lightning.evaluation.table import Table
from agr_lightning.labels import MISSING
from agr_lightning.models.calibration import ADULT, AGE_BINS, AGE_INTERVAL_LEVEL

# Share of the minors, on validation images, that the careful threshold may miss.
MISSED_MINORS = 0.01

# Predictions in a bin of predicted age: enough for a tenth in each tail to be several.
_SMALLEST_BIN = 100

_TEMPERATURES = (0.05, 20.0)


def fit_calibration(table: Table) -> dict[str, Tensor]:
    """Fits everything that the predictions and labels allow.

    Args:
        table: of validation images, with probabilities at temperature 1.

    Returns:
        The state of a ``Calibration``; values of missing tasks or too few images are neutral.
    """
    edges, low, high = fit_age_intervals(table.predicted_age, table.age)
    fitted = {
        "gender_temperature": fit_temperature(table.gender_probabilities, table.gender),
        "race_temperature": fit_temperature(table.race_probabilities, table.race),
        "age_edges": edges,
        "age_low": low,
        "age_high": high,
        "adult_threshold": careful_threshold(table.predicted_age, table.age),
    }
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in fitted.items()}


def fit_temperature(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """What logits are best divided by, in likelihood on held-out samples.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Args:
        probabilities: at temperature 1, ``(n, classes)``; NaN without this task.
        labels: ``(n,)``; ``MISSING`` is left out.

    Returns:
        1 where nothing can be fitted.
    """
    known = (labels != MISSING) & ~np.isnan(probabilities).any(1)
    if len(np.unique(labels[known])) < 2:
        return 1.0
    logits = np.log(np.maximum(probabilities[known], 1e-30))
    rows, target = np.arange(known.sum()), labels[known]

    def cost(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        top = scaled.max(1)
        return float((np.log(np.exp(scaled - top[:, None]).sum(1)) + top - scaled[rows, target]).mean())

    from scipy.optimize import minimize_scalar

    low, high = np.log(_TEMPERATURES)
    return math.exp(minimize_scalar(cost, bounds=(low, high), method="bounded").x)


def fit_age_intervals(
    predicted: NDArray[np.float64], age: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the 80 % interval for each bin of predicted age, so that old and young have theirs.

    Split conformal prediction within bins, each tail by itself: the ``ceil((n + 1) * 0.9)``-th smallest of n signed
    errors is exceeded by a new one with a probability of at most 0.1. Source: Vovk, "Conditional Validity of
    Inductive Conformal Predictors", ACML 2012; Romano et al., "Conformalized Quantile Regression", NeurIPS 2019,
    section 4 on the two tails.

    Args:
        predicted: years, ``(n,)``; NaN without this task.
        age: labels, years, ``(n,)``.

    Returns:
        Bin edges, and what to add to a predicted age for the lower and the upper end, as ``Calibration`` keeps them.
    """
    edges, low, high = np.full(AGE_BINS - 1, np.inf), np.full(AGE_BINS, np.nan), np.full(AGE_BINS, np.nan)
    known = ~np.isnan(predicted)
    predicted, error = predicted[known], (age - predicted)[known]
    bins = min(max(len(predicted) // _SMALLEST_BIN, 1), AGE_BINS)
    if not len(predicted):
        return edges, low, high
    edges[: bins - 1] = np.quantile(predicted, np.arange(1, bins) / bins)
    place = (predicted[:, None] >= edges).sum(1)
    for each in range(AGE_BINS):
        # A bin that equal predictions left with too few borrows from all.
        for members in (error[place == each], error):
            n = len(members)
            rank = math.ceil((n + 1) * (1 + AGE_INTERVAL_LEVEL) / 2)
            if rank <= n:
                ordered = np.sort(members)
                low[each], high[each] = ordered[n - rank], ordered[rank - 1]
                break
    return edges, low, high


def careful_threshold(predicted: NDArray[np.float64], age: NDArray[np.float64]) -> float:
    """The smallest predicted age below which at most 1 % of the minors are missed.

    Args:
        predicted: years, ``(n,)``; NaN without this task.
        age: labels, years, ``(n,)``.

    Returns:
        Years; NaN without minors.
    """
    minors = np.sort(predicted[(age < ADULT) & ~np.isnan(predicted)])[::-1]
    if not len(minors):
        return math.nan
    # Just above the oldest-looking one that may not be missed.
    return float(np.nextafter(np.float32(minors[int(MISSED_MINORS * len(minors))]), np.float32(np.inf)))
