"""Labels and predictions of a set of images, in columns: what every figure is computed from."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agr_lightning.labels import GENDERS, MISSING, RACES, Task


class Table(NamedTuple):
    """One row a sample, as ``metrics.PredictionTable`` gathers them.

    Attributes:
        place: in its set, int64 ``(n,)``.
        age: label, years, float64 ``(n,)``.
        gender: label, int64 ``(n,)``, or ``MISSING``.
        race: label, int64 ``(n,)``, or ``MISSING``.
        predicted_age: years, float64 ``(n,)``; NaN where the network has no age head.
        age_low: lower end of the age interval, years, float64 ``(n,)``; NaN also where it is not calibrated.
        age_high: upper end, likewise.
        gender_probabilities: float64 ``(n, 2)``; NaN where the network has no gender head.
        race_probabilities: float64 ``(n, 5)``; NaN likewise.
    """

    place: NDArray[np.int64]
    age: NDArray[np.float64]
    gender: NDArray[np.int64]
    race: NDArray[np.int64]
    predicted_age: NDArray[np.float64]
    age_low: NDArray[np.float64]
    age_high: NDArray[np.float64]
    gender_probabilities: NDArray[np.float64]
    race_probabilities: NDArray[np.float64]

    @classmethod
    def from_rows(cls, rows: NDArray[np.float32]) -> "Table":
        """Names the columns of ``metrics.PredictionTable``'s result."""
        r = rows.astype(np.float64)
        labels = [r[:, i].astype(np.int64) for i in (0, 2, 3)]
        genders, races = r[:, 7 : 7 + len(GENDERS)], r[:, 7 + len(GENDERS) : 7 + len(GENDERS) + len(RACES)]
        return cls(labels[0], r[:, 1], labels[1], labels[2], r[:, 4], r[:, 5], r[:, 6], genders, races)

    def classifier(self, task: str) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """Probabilities and labels of gender or race, and which samples have both."""
        probabilities, labels = (
            (self.gender_probabilities, self.gender) if task == "gender" else (self.race_probabilities, self.race)
        )
        return probabilities, labels, (labels != MISSING) & ~np.isnan(probabilities).any(1)

    def hits(self, task: str) -> NDArray[np.float64]:
        """1 where the most probable class is the labelled one, 0 where not, NaN where either is unknown."""
        probabilities, labels, known = self.classifier(task)
        return np.where(known, np.nan_to_num(probabilities).argmax(1) == labels, np.nan)

    def per_sample(self) -> dict[str, NDArray[np.float64]]:
        """The metrics that are means over samples: a value for each sample, NaN where it is unknown."""
        error = self.error()
        return {
            "age_mae": np.abs(error),
            "age_bias": error,
            "age_cs5": np.where(np.isnan(error), np.nan, np.abs(error) <= 5),
            "age_coverage": self.covered(),
            "gender_acc": self.hits("gender"),
            "race_acc": self.hits("race"),
        }

    def error(self) -> NDArray[np.float64]:
        """Predicted minus labelled age, years; NaN where there is no prediction."""
        return self.predicted_age - self.age

    def covered(self) -> NDArray[np.float64]:
        """1 where the age interval holds the label, 0 where not, NaN where there is no interval."""
        return np.where(np.isnan(self.age_low), np.nan, (self.age_low <= self.age) & (self.age <= self.age_high))

    def not_finite(self, tasks: Sequence[Task]) -> Task | None:
        """The first task with a prediction that is no finite number; None when all are."""
        found = {"age": self.predicted_age, "gender": self.gender_probabilities, "race": self.race_probabilities}
        return next((task for task in tasks if not np.isfinite(found[task]).all()), None)
