"""Learning from the answers of trained networks, beside the labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from agr_lightning.labels import CLASSES, Task
from agr_lightning.messages import UserError
from agr_lightning.models.age import AgeDistribution, AgeHead
from agr_lightning.models.network import AGRNetwork

# Share of the training loss that is about the teachers' answers.
DEFAULT_TEACHING = 0.5


class Teachers:
    """Knowledge distillation: networks whose mean answers are to be matched.

    No ``nn.Module``: teachers are neither trained nor part of what is trained.

    For classes ``KL(t || p)`` of the teachers' probabilities ``t`` and the student's ``p``; for ages, where student and
    teachers have distributions, ``KL(t || p) + |mean of p - mean of t|``, and otherwise the absolute difference in
    years. Where labels are noisy, what several networks agree on is the better target.
    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, at temperature 1; for
    students like their teachers, Furlanello et al., "Born-Again Neural Networks", ICML 2018.

    Args:
        networks: the teachers, at least one.
        share: of the training loss that is about their answers.

    Raises:
        UserError: for a share that cannot be.
    """

    def __init__(self, networks: Sequence[AGRNetwork], share: float) -> None:
        if not 0 < share <= 1:
            raise UserError(f"--model.teaching {share} must be above 0, and 1 at most.")
        self.share = share
        self._networks = [network.eval().requires_grad_(False) for network in networks]

    def losses(self, images: Tensor, outputs: dict[Task, Tensor], student: AGRNetwork) -> dict[Task, Tensor]:
        """How far a student's answers are from the teachers', by task; tasks that no teacher has are left out.

        Args:
            images: RGB, uint8 ``(batch, 3, height, width)``.
            outputs: what ``student`` returned for them.
            student: whose heads say what its outputs mean.
        """
        with torch.no_grad():
            answers = [
                (network, network(_at_size(images, network.to(images.device).image_size))) for network in self._networks
            ]
        losses: dict[Task, Tensor] = {}
        with torch.autocast(images.device.type, enabled=False):
            for task, output in outputs.items():
                said = [(network, answer[task]) for network, answer in answers if task in answer]
                if not said:
                    continue
                if task in CLASSES:
                    target = torch.stack([answer.softmax(1) for _, answer in said]).mean(0)
                    losses[task] = F.kl_div(output.log_softmax(1), target, reduction="batchmean")
                else:
                    losses[task] = _age_loss(output, student.heads[task], [(n.heads[task], a) for n, a in said])
        return losses


def _age_loss(output: Tensor, head: torch.nn.Module, said: list[tuple[torch.nn.Module, Tensor]]) -> Tensor:
    assert isinstance(head, AgeHead)
    years = torch.stack([other.years(answer) for other, answer in said if isinstance(other, AgeHead)]).mean(0)
    loss = F.l1_loss(head.years(output), years)
    if all(isinstance(each, AgeDistribution) for each in (head, *(other for other, _ in said))):
        target = torch.stack([answer.softmax(1) for _, answer in said]).mean(0)
        loss = loss + F.kl_div(output.log_softmax(1), target, reduction="batchmean")
    return loss


def _at_size(images: Tensor, size: int) -> Tensor:
    """The images as large as a teacher knows them."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
