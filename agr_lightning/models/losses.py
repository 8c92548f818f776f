"""The joint loss of all tasks; the age losses are in age.py."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agr_lightning.labels import MISSING, RACES, TASKS, Task
from agr_lightning.messages import UserError
from agr_lightning.models.age import AGE_LOSSES
from agr_lightning.models.config import AgeLossName

Weighting = Literal["fixed", "uncertainty"]


@dataclass(frozen=True)
class LossWeights:
    """What the loss of each task is multiplied by in the joint loss.

    Args:
        age: weight of the age loss, which is in years for l1 and smooth_l1, in years squared for mse.
        gender: weight of the gender cross-entropy, in nats.
        race: weight of the race cross-entropy, in nats.
    """

    age: float = 0.1
    gender: float = 1.0
    race: float = 1.0

    def __post_init__(self) -> None:
        for task, weight in vars(self).items():
            if not 0 <= weight < math.inf:
                raise UserError(f"--model.loss_weights.{task} {weight} must be 0 or more, and finite.")


class JointLoss(nn.Module):
    """The tasks' losses, and their weighted sum; raises UserError for values that cannot work.

    ``label_smoothing`` is the share of each class label that in training is spread evenly over all classes (Szegedy et
    al., "Rethinking the Inception Architecture", CVPR 2016, section 7).

    Attributes:
        race_weights: what the loss of a sample is multiplied by, for each race, float32 ``(5,)``; ones unless set.
        log_variance: what uncertainty weighting learns, a scalar per task; empty for fixed weights.
    """

    def __init__(
        self,
        age_loss: AgeLossName,
        weights: LossWeights,
        label_smoothing: float = 0.0,
        weighting: Weighting = "fixed",
        tasks: tuple[Task, ...] = TASKS,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"--model.label_smoothing {label_smoothing} must be at least 0 and below 1.")
        self._age_loss, self._weights, self._label_smoothing = AGE_LOSSES[age_loss].function, weights, label_smoothing
        self.race_weights = nn.Buffer(torch.ones(len(RACES)))
        self.log_variance = nn.ParameterDict()
        for task in tasks if weighting == "uncertainty" else ():
            if getattr(weights, task) == 0:
                raise UserError(f"--model.loss_weights.{task} 0 cannot be learned: leave {task} out of --model.tasks.")
            self.log_variance[task] = nn.Parameter(torch.tensor(-math.log(getattr(weights, task))))

    def forward(self, outputs: dict[Task, Tensor], labels: dict[Task, Tensor]) -> dict[Task, Tensor]:
        """Each task's unweighted mean loss over the samples that have its label; 0, with zero gradient, where none has.

        Args:
            outputs: what ``AGRNetwork`` returns.
            labels: ``age`` in years, float ``(batch,)``; ``gender`` and ``race`` class indices, int64 ``(batch,)``.
                ``labels.MISSING`` masks a sample.
        """
        # In 32 bits under mixed precision too: bfloat16's mean of a distribution of ages comes in steps of 0.25 years.
        with torch.autocast(labels["age"].device.type, enabled=False):
            return {task: self._loss(task, output, labels[task]) for task, output in outputs.items()}

    def total(self, losses: dict[Task, Tensor]) -> Tensor:
        """The joint loss, a scalar.

        With fixed weights ``sum_i w_i L_i``; with uncertainty weighting ``sum_i exp(-s_i) L_i + s_i / 2`` with learned
        ``s_i``, which begin at ``-log w_i``. Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty
        to Weigh Losses", CVPR 2018, equation 10; the factor one half of its regression losses only shifts ``s``.
        """
        if not self.log_variance:
            return torch.stack([getattr(self._weights, task) * loss for task, loss in losses.items()]).sum()
        # A loss is exactly 0 without any label of the task: then s has nothing to learn from, and would sink for ever.
        terms = [
            ((-s).exp() * losses[task] + s / 2) * (losses[task] != 0)  # type: ignore[index]
            for task, s in self.log_variance.items()
        ]
        return torch.stack(terms).sum()

    def weigh_races(self, weights: list[float]) -> None:
        """Sets ``race_weights``; raises UserError unless there is a number for each race, not all of them 0."""
        if len(weights) != len(RACES) or not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
            expected = f"none, balanced, or {len(RACES)} numbers of 0 or more, not all 0"
            raise UserError(f"--model.race_class_weights {weights}: expected {expected}.")
        self.race_weights.copy_(torch.tensor(weights))

    def _loss(self, task: Task, output: Tensor, target: Tensor) -> Tensor:
        known = target != MISSING
        if task == "age":
            return self._age_loss(output[known], target[known]) if known.any() else 0 * output.sum()
        smoothing = self._label_smoothing if self.training else 0.0
        each = F.cross_entropy(output, target, ignore_index=MISSING, reduction="none", label_smoothing=smoothing)
        if task == "race":
            # A factor for each sample by its label, also where the label is smoothed.
            each = each * self.race_weights[target.clamp(min=0)]
        return each.sum() / known.sum().clamp(min=1)


def balanced_weights(counts: list[int]) -> list[float]:
    """Class weights under which each class counts the same, and the average sample 1; an empty class gets 1.

    ``n / (k n_c)`` for n samples in k classes, of which ``n_c`` are in class c (scikit-learn's "balanced").

    Example:
        >>> balanced_weights([100, 50, 0])
        [0.75, 1.5, 1.0]
    """
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 1.0 for count in counts]
