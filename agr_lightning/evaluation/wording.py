"""How metrics are called and written, wherever people read them."""

from collections.abc import Sequence
from typing import NamedTuple


class Wording(NamedTuple):
    """Of one metric.

    Attributes:
        label: what it is called.
        meaning: what it says, in a few words.
        share: whether it is a share, written as a percentage; years otherwise.
        short: what it is called where there is little room.
    """

    label: str
    meaning: str
    share: bool
    short: str


WORDING = {
    "age_mae": Wording("age MAE", "mean absolute error of the age", False, "age MAE"),
    "age_rmse": Wording("age RMSE", "root of the mean squared error of the age", False, "age RMSE"),
    "age_bias": Wording("age bias", "mean of predicted minus labelled age", False, "age bias"),
    "age_cs5": Wording("within 5 years", "images whose age is at most 5 years off", True, "within 5 years"),
    "age_coverage": Wording("interval coverage", "images whose label lies in the age interval", True, "coverage"),
    "gender_acc": Wording("gender accuracy", "images whose gender is right", True, "gender"),
    "gender_balanced_acc": Wording(
        "gender balanced accuracy", "mean of the two genders' recalls", True, "gender balanced"
    ),
    "gender_ece": Wording(
        "gender calibration error", "mean distance between probability and accuracy", True, "gender calibration"
    ),
    "race_acc": Wording("race accuracy", "images whose race is right", True, "race"),
    "race_balanced_acc": Wording("race balanced accuracy", "mean of the five races' recalls", True, "race balanced"),
    "race_ece": Wording(
        "race calibration error", "mean distance between probability and accuracy", True, "race calibration"
    ),
}


def written(metric: str, value: float | None) -> str:
    """A value with its unit; nothing where there is none."""
    if value is None:
        return ""
    if WORDING[metric].share:
        return f"{100 * value:.1f} %"
    return f"{value:+.2f} years" if metric == "age_bias" else f"{value:.2f} years"


def bounds(metric: str, interval: Sequence[float] | None) -> str:
    """The ends of an interval, without unit; nothing where there is none."""
    if interval is None:
        return ""
    scale, digits = (100, 1) if WORDING[metric].share else (1, 2)
    return " to ".join(f"{end * scale:.{digits}f}" for end in interval)


def with_interval(metric: str, value: float | None, interval: Sequence[float] | None) -> str:
    """A value with its unit and its interval."""
    return written(metric, value) + (f" ({bounds(metric, interval)})" if interval is not None else "")
