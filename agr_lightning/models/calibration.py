"""What was measured on validation images and goes with every prediction: temperatures, age intervals, a threshold."""

import math

import torch
from torch import Tensor, nn

# Age intervals are calibrated for predictions of similar age; so many kinds at most.
AGE_BINS = 10

# Level of the age interval of each prediction.
AGE_INTERVAL_LEVEL = 0.8

# Below this age, in years, somebody counts as a minor.
ADULT = 18


class Calibration(nn.Module):
    """Applied in evaluation; neutral until fitted. Buffers, so that every copy of the weights carries them.

    Attributes:
        gender_temperature: what the gender logits are divided by.
        race_temperature: likewise.
        age_edges: upper bounds of the bins of predicted age but the last, years, ``(AGE_BINS - 1,)``; infinite where
            there are fewer bins.
        age_low: what to add to a predicted age of each bin for the lower end of its interval, years, ``(AGE_BINS,)``;
            NaN until fitted.
        age_high: likewise for the upper end.
        adult_threshold: predicted age, in years, below which a face is taken for a minor's when hardly any may be
            missed; NaN until fitted.
    """

    gender_temperature: Tensor
    race_temperature: Tensor
    age_edges: Tensor
    age_low: Tensor
    age_high: Tensor
    adult_threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in _neutral().items():
            self.register_buffer(name, value)

    def reset(self) -> None:
        """Makes it neutral again."""
        self.load_state_dict(_neutral())

    def age_interval(self, years: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, years, ``(batch,)`` each, of the intervals around predicted ages ``(batch,)``."""
        place = (years[:, None] >= self.age_edges).sum(1)
        return (years + self.age_low[place]).clamp(min=0), (years + self.age_high[place]).clamp(min=0)


def _neutral() -> dict[str, Tensor]:
    return {
        "gender_temperature": torch.tensor(1.0),
        "race_temperature": torch.tensor(1.0),
        "age_edges": torch.full((AGE_BINS - 1,), math.inf),
        "age_low": torch.full((AGE_BINS,), math.nan),
        "age_high": torch.full((AGE_BINS,), math.nan),
        "adult_threshold": torch.tensor(math.nan),
    }
