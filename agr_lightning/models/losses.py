"""The joint loss. To try another age loss, add a class here and its name to ``AGE_LOSSES``."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agr_lightning.errors import UserError, did_you_mean
from agr_lightning.labels import MISSING, Task

AgeLossName = Literal["l1", "mse", "smooth_l1"]
AGE_LOSSES: tuple[AgeLossName, ...] = get_args(AgeLossName)


@dataclass(frozen=True)
class LossWeights:
    """What each task's loss is multiplied by in the joint loss.

    Args:
        age: weight of the age loss, which is in years (or years squared for mse).
        gender: weight of the gender cross-entropy, in nats.
        race: weight of the race cross-entropy, in nats.
    """

    age: float = 0.1
    gender: float = 1.0
    race: float = 1.0

    def __post_init__(self) -> None:
        for task, weight in vars(self).items():
            if not 0 <= weight < float("inf"):
                raise UserError(f"--model.loss_weights.{task} {weight} must be 0 or more, and finite.")


class L1AgeLoss(nn.Module):
    """Mean absolute error, ``mean(|y - t|)``, in years: the reported metric itself."""

    def forward(self, years: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(years, target)


class MSEAgeLoss(nn.Module):
    """Mean squared error, ``mean((y - t)^2)``, in years squared; weigh it by about 0.01."""

    def forward(self, years: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(years, target)


class SmoothL1AgeLoss(nn.Module):
    """Huber's loss over beta, with beta = 3 years: squared below, absolute above.

    ``mean(d^2 / 6 if |d| < 3 else |d| - 1.5)`` with ``d = y - t``.
    Source: Girshick, "Fast R-CNN", ICCV 2015, equation 3.
    """

    def forward(self, years: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(years, target, beta=3.0)


_AGE_LOSS_CLASSES: dict[AgeLossName, type[nn.Module]] = {
    "l1": L1AgeLoss,
    "mse": MSEAgeLoss,
    "smooth_l1": SmoothL1AgeLoss,
}


def build_age_loss(name: AgeLossName) -> nn.Module:
    """The age loss called ``name``; raises UserError with the known names otherwise."""
    if name not in _AGE_LOSS_CLASSES:
        raise UserError(
            f"no age loss is called '{name}'{did_you_mean(name, AGE_LOSSES)}; known: {', '.join(AGE_LOSSES)}."
        )
    return _AGE_LOSS_CLASSES[name]()


class JointLoss(nn.Module):
    """Weighted sum of the tasks' losses.

    Args:
        age_loss: a name from ``AGE_LOSSES``.
        weights: one factor per task.
        label_smoothing: in training, the share of each class label that is spread evenly over all classes
            (Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7).
    """

    def __init__(self, age_loss: AgeLossName, weights: LossWeights, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self._label_smoothing = label_smoothing
        self.age_loss = build_age_loss(age_loss)
        self.weights: dict[Task, float] = {
            "age": weights.age,
            "gender": weights.gender,
            "race": weights.race,
        }

    def forward(self, outputs: dict[Task, Tensor], labels: dict[Task, Tensor]) -> dict[Task, Tensor]:
        """Each task's unweighted mean loss over the samples that carry its label.

        Args:
            outputs: what ``AGRNetwork`` returns.
            labels: ``age`` in years, float ``(batch,)``; ``gender`` and ``race`` class indices,
                int64 ``(batch,)``, where ``labels.MISSING`` masks a sample.

        Returns:
            A scalar per task in ``outputs``; exactly 0, with zero gradient, when no sample has the label.
        """
        losses: dict[Task, Tensor] = {}
        smoothing = self._label_smoothing if self.training else 0.0
        for task, output in outputs.items():
            if task == "age":
                losses[task] = self.age_loss(output, labels[task])
            else:
                losses[task] = _masked_cross_entropy(output, labels[task], smoothing)
        return losses

    def total(self, losses: dict[Task, Tensor]) -> Tensor:
        """The weighted sum of what ``forward`` returned."""
        return torch.stack([self.weights[task] * loss for task, loss in losses.items()]).sum()


def _masked_cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    summed = F.cross_entropy(logits, target, ignore_index=MISSING, reduction="sum", label_smoothing=smoothing)
    return summed / (target != MISSING).sum().clamp(min=1)
