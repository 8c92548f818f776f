"""The network: one shared backbone, one head per task, normalisation inside. Pure torch."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from agr_lightning.labels import CLASSES, Task
from agr_lightning.models.age import AGE_LOSSES
from agr_lightning.models.backbones import build_backbone
from agr_lightning.models.calibration import ADULT, Calibration
from agr_lightning.models.config import NetworkConfig


class Predictions(NamedTuple):
    """Answers for a batch, float32; those of a task that the network does not have are None.

    Attributes:
        age: years, ``(batch,)``, never negative.
        age_low: lower end of the 80 % age interval, years, ``(batch,)``; NaN until it is calibrated.
        age_high: upper end of the age interval.
        gender: probabilities, ``(batch, 2)``, in the order of ``labels.GENDERS``.
        race: probabilities, ``(batch, 5)``, in the order of ``labels.RACES``.
        prob_under_18: probability of an age below 18 years, ``(batch,)``; None also without a distribution of ages.
    """

    age: Tensor | None
    age_low: Tensor | None
    age_high: Tensor | None
    gender: Tensor | None
    race: Tensor | None
    prob_under_18: Tensor | None

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Those that there are, by name."""
        return {name: value.float().cpu().numpy() for name, value in self._asdict().items() if value is not None}


class AGRNetwork(nn.Module):
    """Shared backbone and one head per task; raises UserError for an unknown backbone, or images that do not fit it.

    Attributes:
        config: what it is.
        tasks: of the heads, in the order of ``labels.TASKS``.
        calibration: what was measured on validation images and is applied by ``read``.

    Example:
        >>> network = AGRNetwork(NetworkConfig(image_size=64)).eval()
        >>> predictions = network.predict(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        >>> predictions.age.shape, predictions.race.shape
        (torch.Size([1]), torch.Size([1, 5]))
    """

    def __init__(self, config: NetworkConfig = NetworkConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.config, self.tasks = config, config.tasks
        # Mean and standard deviation of ImageNet's pixels, in 0..255: what torchvision's weights expect.
        self.pixel_mean = nn.Buffer(torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1))
        self.pixel_std = nn.Buffer(torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1))
        # Brightness of red, green and blue (ITU-R BT.601), as OpenCV and Pillow weigh them.
        self.luma = nn.Buffer(torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1), persistent=False)
        self.calibration = Calibration()
        self.backbone, features = build_backbone(config.backbone, self.tasks, config.image_size)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleDict()
        for task in self.tasks:
            if task == "age":
                self.heads[task] = AGE_LOSSES[config.age_loss].head(features, config.age_readout)
            else:
                self.heads[task] = head = nn.Linear(features, len(CLASSES[task]))
                nn.init.normal_(head.weight, std=0.01)
                nn.init.zeros_(head.bias)
        # As the images are: other weights would be turned around for every batch.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> dict[Task, Tensor]:
        """Computes what the losses need from RGB images, uint8 ``(batch, 3, height, width)``.

        By task, float32: what the age head's ``forward`` returns, and the logits of gender, ``(batch, 2)``, and of
        race, ``(batch, 5)``.
        """
        pixels = images.float()
        if self.config.grayscale:
            pixels = (pixels * self.luma).sum(1, keepdim=True).expand_as(pixels)
        pixels = (pixels - self.pixel_mean) / self.pixel_std
        if twice := self.config.tta_flip and not self.training:
            pixels = torch.cat((pixels, pixels.flip(3)))
        found = self.backbone(pixels)
        # A backbone with branches has features for each task; others share theirs, and what is dropped of them.
        shared = self.dropout(found) if isinstance(found, Tensor) else None
        outputs: dict[Task, Tensor] = {}
        # In 32 bits under mixed precision too: with bfloat16's 8 bits, ages would come in steps of 0.2 years.
        with torch.autocast(images.device.type, enabled=False):
            for task in self.tasks:
                features = self.dropout(found[task]) if shared is None else shared
                output = self.heads[task](features.float())
                outputs[task] = output.unflatten(0, (2, -1)).mean(0) if twice else output
        return outputs

    def read(self, outputs: dict[Task, Tensor]) -> Predictions:
        """Turns what ``forward`` returned into years and probabilities."""
        fitted = self.calibration
        age = self.years(outputs["age"]) if "age" in outputs else None
        low, high = (None, None) if age is None else fitted.age_interval(age)
        gender = (outputs["gender"] / fitted.gender_temperature).softmax(1) if "gender" in outputs else None
        race = (outputs["race"] / fitted.race_temperature).softmax(1) if "race" in outputs else None
        logit_below = getattr(self.heads["age"], "logit_below", None) if "age" in outputs else None
        under_18 = None if logit_below is None else fitted.prob_under_18(logit_below(outputs["age"], ADULT))
        return Predictions(age, low, high, gender, race, under_18)

    def years(self, output: Tensor) -> Tensor:
        """Ages, ``(batch,)``, from what the age head returned."""
        return self.heads["age"].years(output)  # type: ignore[operator, no-any-return]

    def resize(self, images: Tensor) -> Tensor:
        """Images ``(batch, 3, height, width)`` at the network's own size."""
        size = (self.config.image_size, self.config.image_size)
        same = images.shape[2:] == size
        return images if same else F.interpolate(images.float(), size, mode="bilinear", antialias=True)

    def predict(self, images: Tensor) -> Predictions:
        """Years and probabilities for RGB images of any size, uint8 ``(batch, 3, height, width)``."""
        return self.read(self(self.resize(images)))
