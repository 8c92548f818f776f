"""What is fitted on validation images and goes with every prediction: temperatures, age intervals, a threshold."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agr_lightning.labels import MISSING, ClassTask, Task

# Age intervals are calibrated for predictions of similar age, in at most so many bins.
AGE_BINS = 10

# Level of the age interval of each prediction.
AGE_INTERVAL_LEVEL = 0.8

# Below this age, in years, somebody counts as a minor; the threshold may miss this share of the minors.
ADULT, MISSED_MINORS = 18, 0.01

# Predictions in a bin of predicted age: enough for a tenth in each tail to be several.
_SMALLEST_BIN = 100

_NEUTRAL = {
    "gender_temperature": torch.tensor(1.0),
    "race_temperature": torch.tensor(1.0),
    "age_edges": torch.full((AGE_BINS - 1,), math.inf),
    "age_low": torch.full((AGE_BINS,), math.nan),
    "age_high": torch.full((AGE_BINS,), math.nan),
    "adult_threshold": torch.tensor(math.nan),
}


class Calibration(nn.Module):
    """Applied in evaluation; neutral until fitted. Buffers, so that every copy of the weights carries them.

    Attributes:
        gender_temperature: what the gender logits are divided by.
        race_temperature: what the race logits are divided by.
        age_edges: between the bins of predicted age, years, ``(AGE_BINS - 1,)``; infinite where there are fewer bins.
        age_low: what to add to a predicted age for the lower end of its interval, years, ``(AGE_BINS,)``.
        age_high: what to add for the upper end; both are NaN until fitted.
        adult_threshold: predicted age, years, below which a face is taken for a minor's when hardly any may be missed;
            NaN until fitted.
    """

    gender_temperature: Tensor
    race_temperature: Tensor
    age_edges: Tensor
    age_low: Tensor
    age_high: Tensor
    adult_threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in _NEUTRAL.items():
            self.register_buffer(name, value.clone())

    def reset(self) -> None:
        """Makes it neutral again."""
        self.load_state_dict(_NEUTRAL)

    def age_interval(self, years: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, years, ``(batch,)`` each, of the intervals around predicted ages ``(batch,)``."""
        bins = (years[:, None] >= self.age_edges).sum(1)
        return (years + self.age_low[bins]).clamp(min=0), (years + self.age_high[bins]).clamp(min=0)


def fit_calibration(
    labels: Mapping[Task, NDArray[Any]],
    age: NDArray[np.float64],
    probabilities: Mapping[ClassTask, NDArray[np.float64]],
) -> dict[str, Tensor]:
    """Fits everything that predictions and labels of validation images allow.

    Args:
        labels: ``age`` in years, ``gender`` and ``race`` as codes or ``MISSING``, each ``(n,)``.
        age: predicted, years, ``(n,)``; NaN without this task.
        probabilities: of ``gender`` and ``race`` at temperature 1, ``(n, classes)``; NaN without the task.

    Returns:
        The state of a ``Calibration``; values of missing tasks or too few images are neutral.
    """
    edges, low, high = fit_age_intervals(age, labels["age"])
    fitted = {
        "gender_temperature": fit_temperature(probabilities["gender"], labels["gender"]),
        "race_temperature": fit_temperature(probabilities["race"], labels["race"]),
        "age_edges": edges,
        "age_low": low,
        "age_high": high,
        "adult_threshold": fit_adult_threshold(age, labels["age"]),
    }
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in fitted.items()}


def fit_temperature(probabilities: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """What logits are best divided by, in likelihood; 1 where nothing can be fitted.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
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

    return math.exp(minimize_scalar(cost, bounds=(math.log(0.05), math.log(20)), method="bounded").x)


def fit_age_intervals(
    predicted: NDArray[np.float64], age: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """``age_edges``, ``age_low`` and ``age_high`` of a ``Calibration``: each bin of predicted age has its interval.

    Split conformal prediction within bins, each tail by itself: the ``ceil((n + 1) * 0.9)``-th smallest of n signed
    errors is exceeded by a new one with a probability of at most 0.1. Source: Vovk, "Conditional Validity of
    Inductive Conformal Predictors", ACML 2012; Romano et al., "Conformalized Quantile Regression", NeurIPS 2019,
    section 4 on the two tails.
    """
    edges, low, high = np.full(AGE_BINS - 1, np.inf), np.full(AGE_BINS, np.nan), np.full(AGE_BINS, np.nan)
    known = ~np.isnan(predicted)
    predicted, error = predicted[known], (age - predicted)[known]
    if not len(predicted):
        return edges, low, high
    bins = min(max(len(predicted) // _SMALLEST_BIN, 1), AGE_BINS)
    edges[: bins - 1] = np.quantile(predicted, np.arange(1, bins) / bins)
    bin_of = (predicted[:, None] >= edges).sum(1)
    for each in range(AGE_BINS):
        # A bin that equal predictions left with too few borrows from all.
        for members in (error[bin_of == each], error):
            n = len(members)
            rank = math.ceil((n + 1) * (1 + AGE_INTERVAL_LEVEL) / 2)
            if rank <= n:
                ordered = np.sort(members)
                low[each], high[each] = ordered[n - rank], ordered[rank - 1]
                break
    return edges, low, high


def fit_adult_threshold(predicted: NDArray[np.float64], age: NDArray[Any]) -> float:
    """The smallest predicted age, years, below which at most 1 % of the minors are missed; NaN without minors."""
    minors = np.sort(predicted[(age < ADULT) & ~np.isnan(predicted)])[::-1]
    if not len(minors):
        return math.nan
    # Just above the oldest-looking one that may not be missed.
    return float(np.nextafter(np.float32(minors[int(MISSED_MINORS * len(minors))]), np.float32(np.inf)))
