"""What is fitted on validation images and goes with every prediction: temperatures, age intervals, minors."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agr_lightning.labels import CLASSES, MISSING

if TYPE_CHECKING:
    from pandas import DataFrame

# Age intervals are calibrated for predictions of similar age, in at most so many bins of at least so many predictions:
# enough for a tenth in each tail to be several.
AGE_BINS, _SMALLEST_BIN = 10, 100

# Level of the age interval of each prediction.
AGE_INTERVAL_LEVEL = 0.8

# Below this age, in years, somebody counts as a minor; the threshold may miss this share of the minors.
ADULT, MISSED_MINORS = 18, 0.01

# Standard deviation of the logarithm of a temperature, before any image is seen.
_TEMPERATURE_SPREAD = 0.3

# Logits of being under 18 are cut to plus and minus this, a millionth from certainty; and the fewest minors, and the
# fewest adults, from which their calibration is fitted.
_SUREST, _FEWEST = 14.0, 10


class Calibration(nn.Module):
    """Applied in evaluation; neutral until fitted. Buffers, so that every copy of the weights carries them.

    Attributes:
        gender_temperature, race_temperature: what the logits of gender and of race are divided by.
        age_edges: between the bins of predicted age, years, ``(AGE_BINS - 1,)``; infinite where there are fewer bins.
        age_low: what to add to a predicted age for the lower end of its interval, years, ``(AGE_BINS,)``.
        age_high: what to add for the upper end; both are NaN until fitted.
        adult_threshold: predicted age, years, below which a face is taken for a minor's when hardly any may be missed;
            NaN until fitted.
        under_18_slope, under_18_intercept: of the line from the logit of being under 18 to the calibrated one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gender_temperature = nn.Buffer(torch.tensor(1.0))
        self.race_temperature = nn.Buffer(torch.tensor(1.0))
        self.age_edges = nn.Buffer(torch.full((AGE_BINS - 1,), math.inf))
        self.age_low = nn.Buffer(torch.full((AGE_BINS,), math.nan))
        self.age_high = nn.Buffer(torch.full((AGE_BINS,), math.nan))
        self.adult_threshold = nn.Buffer(torch.tensor(math.nan))
        self.under_18_slope = nn.Buffer(torch.tensor(1.0))
        self.under_18_intercept = nn.Buffer(torch.tensor(0.0))

    def reset(self) -> None:
        """Makes it neutral again."""
        self.load_state_dict(Calibration().state_dict())

    def age_interval(self, years: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, years, ``(batch,)`` each, of the intervals around predicted ages ``(batch,)``."""
        bins = (years[:, None] >= self.age_edges).sum(1)
        return (years + self.age_low[bins]).clamp(min=0), (years + self.age_high[bins]).clamp(min=0)

    def prob_under_18(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities of being under 18, ``(batch,)``, from their logits in the age distribution."""
        logit = logit.float().clamp(-_SUREST, _SUREST)
        return (self.under_18_slope * logit + self.under_18_intercept).sigmoid()


def fit_calibration(table: "DataFrame") -> dict[str, Tensor]:
    """The state of a ``Calibration``, fitted on labelled validation images; neutral where they are too few, or none.

    ``table`` has a row an image, with the columns ``age`` in years, ``gender`` and ``race`` as codes, each or
    ``MISSING``, ``predicted_age`` in years, ``prob_CLASS`` at temperature 1, and ``prob_under_18`` at slope 1 and
    intercept 0; predictions are NaN without the task, or the distribution of ages.
    """
    fitted: dict[str, Any] = {}
    for task, classes in CLASSES.items():
        probabilities = table[[f"prob_{name}" for name in classes]].to_numpy()
        fitted[f"{task}_temperature"] = fit_temperature(probabilities, table[task].to_numpy())
    aged = table[table["age"] != MISSING]
    age, predicted = aged["age"].to_numpy(), aged["predicted_age"].to_numpy()
    fitted["age_edges"], fitted["age_low"], fitted["age_high"] = fit_age_intervals(predicted, age)
    fitted["adult_threshold"] = fit_adult_threshold(predicted, age)
    fitted["under_18_slope"], fitted["under_18_intercept"] = fit_under_18(aged["prob_under_18"].to_numpy(), age)
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in fitted.items()}


def fit_temperature(probabilities: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """What logits are best divided by; 1 where nothing can be fitted.

    By likelihood times a prior around 1, which matters for tens of images: when all of them are right, the likelihood
    alone would make the network sure of everything. Source: Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017.
    """
    known = (labels != MISSING) & ~np.isnan(probabilities).any(1)
    if len(np.unique(labels[known])) < 2:
        return 1.0
    logits = np.log(np.maximum(probabilities[known], 1e-30))
    rows, target = np.arange(known.sum()), labels[known]

    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def cost(log_temperature: float) -> float:
        likelihood = log_softmax(logits / math.exp(log_temperature), 1)[rows, target].sum()
        return (log_temperature / _TEMPERATURE_SPREAD) ** 2 / 2 - float(likelihood)

    return math.exp(minimize_scalar(cost, bounds=(math.log(0.05), math.log(20)), method="bounded").x)


def fit_age_intervals(predicted: NDArray[np.float64], age: NDArray[Any]) -> tuple[NDArray[np.float64], ...]:
    """``age_edges``, ``age_low`` and ``age_high`` of a ``Calibration``: each bin of predicted age has its interval.

    Split conformal prediction within bins, each tail by itself: the ``ceil((n + 1) * 0.9)``-th smallest of n signed
    errors is exceeded by a new one with a probability of at most 0.1. Source: Vovk, "Conditional Validity of
    Inductive Conformal Predictors", ACML 2012; Romano et al., "Conformalized Quantile Regression", NeurIPS 2019,
    section 4 on the two tails.
    """
    edges, low, high = np.full(AGE_BINS - 1, np.inf), np.full(AGE_BINS, np.nan), np.full(AGE_BINS, np.nan)
    known = ~np.isnan(predicted)
    predicted, error = predicted[known], (age - predicted)[known]
    bins = min(max(len(predicted) // _SMALLEST_BIN, 1), AGE_BINS)
    if bins > 1:
        edges[: bins - 1] = np.quantile(predicted, np.arange(1, bins) / bins)
    bin_of = (predicted[:, None] >= edges).sum(1)
    for each in range(AGE_BINS):
        # A bin that equal predictions left with too few keeps what fits all.
        for members in (error, error[bin_of == each]):
            rank = math.ceil((len(members) + 1) * (1 + AGE_INTERVAL_LEVEL) / 2)
            if rank <= len(members):
                low[each], high[each] = np.sort(members)[[-rank, rank - 1]]
    return edges, low, high


def fit_adult_threshold(predicted: NDArray[np.float64], age: NDArray[Any]) -> float:
    """The smallest predicted age, years, below which at most 1 % of the minors are missed; NaN without minors."""
    minors = np.sort(predicted[(age < ADULT) & ~np.isnan(predicted)])[::-1]
    if not len(minors):
        return math.nan
    # Just above the oldest-looking one that may not be missed.
    return float(np.nextafter(np.float32(minors[int(MISSED_MINORS * len(minors))]), np.float32(np.inf)))


def fit_under_18(probabilities: NDArray[np.float64], age: NDArray[Any]) -> tuple[float, float]:
    """``under_18_slope`` and ``under_18_intercept`` of a ``Calibration``, in likelihood; (1, 0) for too few images.

    The slope is never negative. The targets are not 0 and 1 but those of the source, with which the best line is finite
    where minors and adults are told apart without a mistake. Source: Platt, "Probabilistic Outputs for Support Vector
    Machines", 1999.
    """
    known = ~np.isnan(probabilities)
    minor = age[known] < ADULT
    minors, adults = int(minor.sum()), int((~minor).sum())
    if min(minors, adults) < _FEWEST:
        return 1.0, 0.0
    from scipy.optimize import minimize
    from scipy.special import logit

    found = logit(probabilities[known]).clip(-_SUREST, _SUREST)
    target = np.where(minor, (minors + 1) / (minors + 2), 1 / (adults + 2))

    def cost(line: NDArray[np.float64]) -> float:
        scaled = line[0] * found + line[1]
        return float((np.logaddexp(0, scaled) - target * scaled).mean())

    slope, intercept = minimize(cost, (1.0, 0.0), bounds=((0.0, 20.0), (-20.0, 20.0)), method="L-BFGS-B").x.tolist()
    return slope, intercept
