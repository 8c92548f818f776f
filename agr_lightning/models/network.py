"""The network: one shared backbone, one head per task, normalisation inside. Pure torch."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agr_lightning.labels import GENDERS, RACES, TASKS, Task, check_tasks
from agr_lightning.models.backbones import BackboneName, build_backbone

# Mean and standard deviation of ImageNet's pixels, in 0..255: what torchvision's weights expect.
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)

# The age head's unit, in years: keeps its weights near 1, where one learning rate suits all heads.
_AGE_UNIT = 25.0
_AGE_AT_START = 33.0

_OUTPUTS: dict[Task, int] = {"age": 1, "gender": len(GENDERS), "race": len(RACES)}


class Predictions(NamedTuple):
    """What the network says of a batch; a task it does not have is None.

    Attributes:
        age: years, float32 ``(batch,)``, never negative.
        gender: probabilities, float32 ``(batch, 2)``, in the order of ``labels.GENDERS``.
        race: probabilities, float32 ``(batch, 5)``, in the order of ``labels.RACES``.
    """

    age: Tensor | None
    gender: Tensor | None
    race: Tensor | None


class AGRNetwork(nn.Module):
    """Shared backbone and one linear head per task.

    Args:
        backbone: a name from ``models.backbones.BACKBONES``.
        tasks: which heads to build: any non-empty subset of age, gender and race.
        dropout: probability of dropping a feature before the heads.

    Attributes:
        age_margin: half the width, in years, of the 80 % age interval, measured on validation
            images; NaN until then. A buffer, so that every copy of the weights carries it.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    age_margin: Tensor

    def __init__(
        self,
        backbone: BackboneName = "agr_cnn",
        tasks: tuple[Task, ...] = TASKS,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.tasks = check_tasks(list(tasks))
        self.register_buffer("pixel_mean", torch.tensor(_PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(_PIXEL_STD).view(1, 3, 1, 1))
        self.register_buffer("age_margin", torch.tensor(math.nan))
        self.backbone, features = build_backbone(backbone)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({task: nn.Linear(features, _OUTPUTS[task]) for task in self.tasks})
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        if "age" in self.heads:
            age_head = self.heads["age"]
            assert isinstance(age_head, nn.Linear)
            # softplus(bias) is then the age from which training starts.
            nn.init.constant_(age_head.bias, math.log(math.expm1(_AGE_AT_START / _AGE_UNIT)))
        # As the images are: other weights would be turned around for every batch.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> dict[Task, Tensor]:
        """Computes what the losses need.

        Args:
            images: RGB, uint8 ``(batch, 3, height, width)``.

        Returns:
            By task: ``age`` in years, ``(batch,)``, non-negative; ``gender`` logits, ``(batch, 2)``;
            ``race`` logits, ``(batch, 5)``. All float32.
        """
        x = (images.float() - self.pixel_mean) / self.pixel_std
        features = self.dropout(self.backbone(x))
        outputs: dict[Task, Tensor] = {}
        # In 32 bits under mixed precision too: with bfloat16's 8 bits, ages would come in steps of 0.2 years.
        with torch.autocast(images.device.type, enabled=False):
            for task in self.tasks:
                raw = self.heads[task](features.float())
                outputs[task] = F.softplus(raw[:, 0]) * _AGE_UNIT if task == "age" else raw
        return outputs

    def predict(self, images: Tensor) -> Predictions:
        """Years and probabilities for uint8 images ``(batch, 3, height, width)``."""
        return to_predictions(self(images))


def to_predictions(outputs: dict[Task, Tensor]) -> Predictions:
    """Turns the network's outputs into years and probabilities."""
    return Predictions(
        age=outputs.get("age"),
        gender=outputs["gender"].softmax(1) if "gender" in outputs else None,
        race=outputs["race"].softmax(1) if "race" in outputs else None,
    )
