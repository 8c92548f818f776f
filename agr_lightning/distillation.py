"""Learning from the answers of trained networks, beside the labels."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from agr_lightning.checkpoints import TrainedNetwork, load_trained
from agr_lightning.labels import Task
from agr_lightning.messages import UserError
from agr_lightning.models.age import AgeDistribution
from agr_lightning.models.network import AGRNetwork


class Distillation:
    """Knowledge distillation: trained networks, the teachers, whose mean answers are to be matched.

    No ``nn.Module``: teachers are neither trained nor part of what is trained.

    For classes ``KL(t || p)`` of the teachers' probabilities ``t`` and the student's ``p``; for ages, where student and
    teachers have distributions, ``KL(t || p) + |mean of p - mean of t|``, and otherwise the absolute difference in
    years. Where labels are noisy, what several networks agree on is the better target.
    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, at temperature 1; for
    students like their teachers, Furlanello et al., "Born-Again Neural Networks", ICML 2018.

    ``weight`` is the share of the training loss that is about their answers, and ``trained`` what is known of them.
    """

    def __init__(self, networks: Sequence[AGRNetwork], weight: float, trained: Sequence[TrainedNetwork] = ()) -> None:
        if not 0 < weight <= 1:
            raise UserError(f"--model.distillation_weight {weight} must be above 0, and 1 at most.")
        self.weight, self.trained = weight, trained
        self._networks = [network.eval().requires_grad_(False) for network in networks]

    @classmethod
    def load(cls, teachers: Sequence[str], tasks: Sequence[Task], weight: float) -> "Distillation":
        """Reads teachers, by names that ``--ckpt_path`` takes too; raises UserError for one that knows no task."""
        trained = [load_trained(named, Path(), "--model.teachers") for named in teachers]
        for teacher in trained:
            known = teacher.config.tasks
            if not set(known) & set(tasks):
                raise UserError(f"--model.teachers {teacher.name} knows {' and '.join(known)} alone: name another.")
        return cls([teacher.network() for teacher in trained], weight, trained)

    def losses(self, images: Tensor, outputs: dict[Task, Tensor], student: AGRNetwork) -> dict[Task, Tensor]:
        """How far a student's answers are from the teachers', by task; tasks that no teacher has are left out.

        ``outputs`` are what the student returned for ``images``, RGB, uint8 ``(batch, 3, height, width)``.
        """
        with torch.no_grad():
            answers = [(network, network(network.to(images.device).resize(images))) for network in self._networks]
        losses: dict[Task, Tensor] = {}
        with torch.autocast(images.device.type, enabled=False):
            for task, output in outputs.items():
                known = [(network, answer[task]) for network, answer in answers if task in answer]
                if not known:
                    continue
                heads = [network.heads[task] for network in (student, *(network for network, _ in known))]
                terms = []
                if task == "age":
                    years = torch.stack([network.years(answer) for network, answer in known]).mean(0)
                    terms.append(F.l1_loss(student.years(output), years))
                if task != "age" or all(isinstance(head, AgeDistribution) for head in heads):
                    target = torch.stack([answer.softmax(1) for _, answer in known]).mean(0)
                    terms.append(F.kl_div(output.log_softmax(1), target, reduction="batchmean"))
                losses[task] = torch.stack(terms).sum()
        return losses
