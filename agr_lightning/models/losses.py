"""The joint loss of all tasks; the age losses are in age.py."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agr_lightning.labels import MISSING, Task
from agr_lightning.messages import UserError
from agr_lightning.models.age import AGE_LOSSES
from agr_lightning.models.config import AgeLossName


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
    """

    def __init__(self, age_loss: AgeLossName, weights: LossWeights, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"--model.label_smoothing {label_smoothing} must be at least 0 and below 1.")
        self._age_loss, self._weights, self._label_smoothing = AGE_LOSSES[age_loss].function, weights, label_smoothing

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
        """The joint loss, a scalar: ``sum_i w_i L_i``."""
        return torch.stack([getattr(self._weights, task) * loss for task, loss in losses.items()]).sum()

    def _loss(self, task: Task, output: Tensor, target: Tensor) -> Tensor:
        known = target != MISSING
        if task == "age":
            each = self._age_loss(output, target)
        else:
            smoothing = self._label_smoothing if self.training else 0.0
            each = F.cross_entropy(output, target, ignore_index=MISSING, reduction="none", label_smoothing=smoothing)
        return torch.where(known, each, 0).sum() / known.sum().clamp(min=1)
