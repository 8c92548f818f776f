"""Age: heads, read-outs and losses. To try another loss, add a function here and a line to ``AGE_LOSSES``."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agr_lightning.labels import AGE_MAX
from agr_lightning.messages import UserError
from agr_lightning.models.config import AgeLossName, AgeReadout

# A distribution over ages has a class for each year from 0.
AGES = AGE_MAX + 1

# In years: from which age and spread training starts; and the regression's unit, which keeps its weights near 1, where
# one learning rate suits all heads.
_START, _START_SPREAD, _UNIT = 33.0, 18.0, 25.0


class AgeRegression(nn.Linear):
    """One number: ``years = 25 softplus(w x + b)``, never negative; there is no distribution to read out."""

    def __init__(self, features: int, readout: AgeReadout | None = None) -> None:
        if readout is not None:
            fitting = ", ".join(name for name, loss in AGE_LOSSES.items() if loss.head is not AgeRegression)
            raise UserError(f"--model.age_readout {readout} is for distributions: --model.age_loss {fitting}.")
        super().__init__(features, 1)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.constant_(self.bias, math.log(math.expm1(_START / _UNIT)))

    def forward(self, features: Tensor) -> Tensor:
        """Years, ``(batch,)``, from features ``(batch, features)``."""
        return F.softplus(super().forward(features)[:, 0]) * _UNIT

    def years(self, output: Tensor) -> Tensor:
        """Years, ``(batch,)``: what ``forward`` returned."""
        return output


class AgeDistribution(nn.Linear):
    """A softmax over the years 0 to 116; the age is its mean or its median."""

    def __init__(self, features: int, readout: AgeReadout | None = None) -> None:
        super().__init__(features, AGES)
        self.readout = readout
        nn.init.normal_(self.weight, std=0.01)
        self.bias = nn.Parameter(-((torch.arange(AGES) - _START) ** 2) / (2 * _START_SPREAD**2))

    def years(self, output: Tensor) -> Tensor:
        """Years, ``(batch,)``, from logits ``(batch, 117)``."""
        return read_out(1 - output.softmax(1).cumsum(1)[:, :-1], self.readout)

    def logit_below(self, output: Tensor, age: int) -> Tensor:
        """Logit of the probability of an age below this one, years, ``(batch,)``, from what ``forward`` returned."""
        return output[:, :age].logsumexp(1) - output[:, age:].logsumexp(1)


class AgeOrdinal(nn.Module):
    """One score against 116 thresholds: ``P(age > k) = sigmoid(w x + b_k)``; the age is the mean or the median.

    Source: Cao, Mirjalili and Raschka, "Rank Consistent Ordinal Regression for Neural Networks with Application to
    Age Estimation", Pattern Recognition Letters 2020 (CORAL); there the age is the number of thresholds that are
    passed with a probability above one half, of which the median here is the version without steps.
    """

    def __init__(self, features: int, readout: AgeReadout | None = None) -> None:
        super().__init__()
        self.readout = readout
        self.weight = nn.Parameter(torch.empty(1, features).normal_(std=0.01))
        # Those of a logistic distribution of the starting age and spread.
        scale = _START_SPREAD * math.sqrt(3) / math.pi
        self.bias = nn.Parameter((_START - 0.5 - torch.arange(AGES - 1)) / scale)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of ``age > k`` for k from 0 to 115, ``(batch, 116)``, from features ``(batch, features)``."""
        return F.linear(features, self.weight) + self.bias

    def years(self, output: Tensor) -> Tensor:
        """Years, ``(batch,)``, from what ``forward`` returned."""
        return read_out(output.sigmoid(), self.readout)

    def logit_below(self, output: Tensor, age: int) -> Tensor:
        """Logit of the probability of an age below this one, years, ``(batch,)``, from what ``forward`` returned."""
        return -output[:, age - 1]


def read_out(survival: Tensor, readout: AgeReadout | None) -> Tensor:
    """Years, 0 to 116, ``(batch,)``, from ``P(age > k)`` for k from 0 to 115, ``(batch, 116)``.

    By default the mean, ``sum_k P(age > k)``; for the median, each age k is spread evenly from k - 1/2 to k + 1/2.

    Example:
        >>> survival = torch.tensor([[1.0] * 30 + [0.5] + [0.0] * 85])  # 30 or 31, with equal probability
        >>> read_out(survival, "mean"), read_out(survival, "median")
        (tensor([30.5000]), tensor([30.5000]))
    """
    if readout != "median":
        return survival.sum(1)
    # Where the probability first falls to one half, between P(age > -1) = 1 and P(age > 116) = 0.
    ends = F.pad(F.pad(survival, (1, 0), value=1.0), (0, 1), value=0.0)
    passed = (survival > 0.5).sum(1, keepdim=True)
    before, after = ends.gather(1, passed), ends.gather(1, passed + 1)
    step = ((before - 0.5) / (before - after).clamp(min=1e-6)).clamp(0, 1)
    return (passed - 0.5 + step)[:, 0].clamp(0, AGE_MAX)


def dldl_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Label distribution learning: ``KL(g || p) + |m - t|``, ``(batch,)``.

    ``p`` is the softmax, ``m`` its mean and ``g`` a Gaussian around the label with a spread of 2 years, renormalised
    over the ages that exist.
    Source: Gao et al., "Age Estimation Using Expectation of Label Distribution Learning", IJCAI 2018 (DLDL-v2).
    """
    ages = torch.arange(AGES, device=logits.device)
    gaussian = (-((ages - target[:, None]) ** 2) / (2 * 2**2)).softmax(1)
    divergence = F.kl_div(logits.log_softmax(1), gaussian, reduction="none").sum(1)
    return divergence + (logits.softmax(1) @ ages.float() - target).abs()


def mean_variance_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, error of the mean, and spread: ``-log p_t + 0.1 (m - t)^2 + 0.05 v``, ``(batch,)``.

    ``m`` and ``v`` are mean and variance of the softmax ``p``; of a decimal age t both years beside it have a part.
    Source: Pan et al., "Mean-Variance Loss for Deep Age Estimation from a Face", CVPR 2018, equation 6 with
    ``lambda_1 = 0.2`` (of half the squared error) and ``lambda_2 = 0.05``.
    """
    ages = torch.arange(AGES, device=logits.device).float()
    probabilities = logits.softmax(1)
    mean = probabilities @ ages
    variance = (probabilities * (ages - mean[:, None]) ** 2).sum(1)
    entropy = F.cross_entropy(logits, (1 - (ages - target[:, None]).abs()).clamp(min=0), reduction="none")
    return entropy + 0.1 * (mean - target) ** 2 + 0.05 * variance


def coral_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of all thresholds: ``-sum_k p_k log q_k + (1 - p_k) log(1 - q_k)``, ``(batch,)``.

    ``q_k`` is the predicted ``P(age > k)`` and ``p_k`` is 1 for a label above k, else 0; a decimal age passes its last
    threshold in part, so that the ``p_k`` add up to it. Source: Cao, Mirjalili and Raschka, 2020 (CORAL), equation 4,
    with all weights 1.
    """
    passed = (target[:, None] - torch.arange(AGES - 1, device=logits.device)).clamp(0, 1)
    return F.binary_cross_entropy_with_logits(logits, passed, reduction="none").sum(1)


class AgeLoss(NamedTuple):
    """The loss of a head's output for labels in years, ``(batch,)`` each; and the head, of features and a read-out."""

    function: Callable[[Tensor, Tensor], Tensor]
    head: Callable[[int, AgeReadout | None], nn.Module]


AGE_LOSSES: dict[AgeLossName, AgeLoss] = {
    # |y - t|, in years: the reported metric itself.
    "l1": AgeLoss(partial(F.l1_loss, reduction="none"), AgeRegression),
    # (y - t)^2, in years squared; weigh it by about 0.01.
    "mse": AgeLoss(partial(F.mse_loss, reduction="none"), AgeRegression),
    # d^2 / 6 if |d| < 3 else |d| - 1.5 with d = y - t (Girshick, "Fast R-CNN", ICCV 2015, equation 3).
    "smooth_l1": AgeLoss(partial(F.smooth_l1_loss, beta=3.0, reduction="none"), AgeRegression),
    "dldl": AgeLoss(dldl_loss, AgeDistribution),
    "mean_variance": AgeLoss(mean_variance_loss, AgeDistribution),
    "coral": AgeLoss(coral_loss, AgeOrdinal),
}
