"""What the network says of one face."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agr_lightning.labels import CLASSES, ClassTask

# The arrays in which an engine returns what it found, and an exported file names its outputs: ages in years,
# ``(faces,)``, and probabilities, ``(faces, classes)``.
OUTPUTS = ("age", "age_low", "age_high", "gender", "race")

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Answer:
    """What the network says of one face; None for a task that it does not have.

    Attributes:
        age: years.
        age_low: lower end of the 80 % age interval, years; None also where the network was never calibrated.
        age_high: upper end, likewise.
        genders: probability of each of ``labels.GENDERS``.
        races: probability of each of ``labels.RACES``.
    """

    age: float | None
    age_low: float | None
    age_high: float | None
    genders: dict[str, float] | None
    races: dict[str, float] | None

    @property
    def gender(self) -> str | None:
        """The most probable gender."""
        return _likeliest(self.genders)

    @property
    def gender_probability(self) -> float | None:
        """Its probability."""
        return None if self.genders is None else max(self.genders.values())

    @property
    def race(self) -> str | None:
        """The most probable race."""
        return _likeliest(self.races)

    @property
    def race_probability(self) -> float | None:
        """Its probability."""
        return None if self.races is None else max(self.races.values())

    def without(self, task: ClassTask) -> "Answer":
        """The same answer without a task."""
        return replace(self, genders=None) if task == "gender" else replace(self, races=None)


def answers(arrays: Arrays) -> list[Answer]:
    """The answer for each face of a batch."""
    count = len(next(iter(arrays.values())))
    ages = [_numbers(arrays.get(name), count) for name in ("age", "age_low", "age_high")]
    classes = [_probabilities(arrays.get(task), CLASSES[task], count) for task in CLASSES]
    return [Answer(*row) for row in zip(*ages, *classes, strict=True)]


def _numbers(values: NDArray[np.float32] | None, count: int) -> list[float | None]:
    if values is None:
        return [None] * count
    return [None if math.isnan(value) else value for value in values.tolist()]


def _probabilities(
    values: NDArray[np.float32] | None, names: tuple[str, ...], count: int
) -> list[dict[str, float] | None]:
    if values is None:
        return [None] * count
    return [dict(zip(names, row, strict=True)) for row in values.tolist()]


def _likeliest(probabilities: dict[str, float] | None) -> str | None:
    return None if probabilities is None else max(probabilities, key=probabilities.__getitem__)
