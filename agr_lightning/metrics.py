"""What is measured while a stage runs: torchmetrics objects, exact over samples, batches and ranks."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

from agr_lightning.labels import GENDERS, MISSING, RACES, Task
from agr_lightning.models.network import Predictions


class MaskedAccuracy(MulticlassAccuracy):
    """Share of labelled samples whose most probable class is right; NaN when no sample is labelled."""

    def __init__(self, classes: int) -> None:
        # Unchecked: what the network and the index say needs no second look, in every step.
        super().__init__(classes, average="micro", ignore_index=MISSING, validate_args=False)

    def compute(self) -> Tensor:
        counted = torch.as_tensor(self.tp).sum() + torch.as_tensor(self.fn).sum()
        return super().compute() if counted > 0 else torch.full_like(counted, torch.nan, dtype=torch.float32)


class MeanLosses(Metric):
    """The tasks' mean losses, each over the samples that have its label.

    Not the means of the batches' losses, which would depend on how the labels fall into batches.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        super().__init__()
        self.tasks = tasks
        self.add_state("sums", torch.zeros(len(tasks)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(tasks)), dist_reduce_fx="sum")

    def update(self, losses: dict[Task, Tensor], counts: dict[Task, Tensor]) -> None:
        """Adds a batch: mean losses and how many samples they are means of."""
        count = torch.stack([counts[task] for task in self.tasks])
        self.sums += torch.stack([losses[task].detach() for task in self.tasks]) * count
        self.counts += count

    def means(self) -> Tensor:
        """A mean for each task, ``(tasks,)``; 0 where there was no label."""
        return self.sums / self.counts.clamp(min=1)

    def compute(self) -> Tensor:
        """The mean loss, of a single task."""
        return self.means().squeeze(0)


class JointLossMetric(MeanLosses):
    """What the joint loss makes of the tasks' mean losses."""

    def __init__(self, tasks: tuple[Task, ...], total: nn.Module) -> None:
        super().__init__(tasks)
        self._total = (total,)  # in a tuple: its parameters are not this metric's
        self._evaluated = self._total

    def update(self, losses: dict[Task, Tensor], counts: dict[Task, Tensor]) -> None:
        super().update(losses, counts)
        # A callback that averages weights has put the others back when an evaluation ends.
        self._evaluated = self._total if self.training else (copy.deepcopy(self._total[0]),)

    def compute(self) -> Tensor:
        """A scalar; under fixed weights a task without any label adds nothing."""
        joint: Tensor = self._evaluated[0](dict(zip(self.tasks, self.means(), strict=True)))
        return joint.detach()


class StageMetrics(nn.Module):
    """Losses and scores of one stage: ``loss``, ``loss_TASK``, ``age_mae`` (years), ``gender_acc``, ``race_acc``.

    Args:
        tasks: which tasks the network has.
        total: joins their losses: from a dict by task to a scalar.
    """

    def __init__(self, tasks: tuple[Task, ...], total: nn.Module) -> None:
        super().__init__()
        self.tasks = tasks
        self.loss = JointLossMetric(tasks, total)
        # Not MeanMetric, which looks for NaN in every step, and told not to look, forgets the weights.
        self.losses = nn.ModuleDict({task: MeanLosses((task,)) for task in tasks})
        scores: dict[Task, tuple[str, Metric]] = {
            "age": ("age_mae", MeanAbsoluteError()),
            "gender": ("gender_acc", MaskedAccuracy(len(GENDERS))),
            "race": ("race_acc", MaskedAccuracy(len(RACES))),
        }
        self.scores = nn.ModuleDict({scores[task][0]: scores[task][1] for task in tasks})

    def update(self, predictions: Predictions, labels: dict[Task, Tensor], losses: dict[Task, Tensor]) -> None:
        """Adds a batch; each loss counts once for each sample that has its label."""
        counts = {task: (labels[task] != MISSING).sum().float() for task in self.tasks}
        self.loss.update(losses, counts)
        for task, score in zip(self.tasks, self.scores.values(), strict=True):
            assert isinstance(score, Metric)
            score.update(getattr(predictions, task).detach(), labels[task])
            mean = self.losses[task]
            assert isinstance(mean, MeanLosses)
            mean.update(losses, counts)

    def named(self) -> Iterator[tuple[str, Metric]]:
        """Each metric with the name under which it is logged."""
        yield "loss", self.loss
        for task, mean in self.losses.items():
            assert isinstance(mean, Metric)
            yield f"loss_{task}", mean
        for name, score in self.scores.items():
            assert isinstance(score, Metric)
            yield name, score


class PredictionTable(Metric):
    """Labels and predictions of every sample, over all ranks, in the order of the dataset.

    Columns of the result, float32: index, age, gender, race (labels; ``MISSING`` where unknown), then
    predicted age, the ends of its interval, 2 gender and 5 race probabilities (NaN for a task that the network does
    not have).
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, labels: dict[Task, Tensor], predictions: Predictions) -> None:
        """Adds a batch."""
        n = len(index)
        columns = [index[:, None]] + [labels[task][:, None] for task in ("age", "gender", "race")]
        for values, width in zip(predictions, (1, 1, 1, len(GENDERS), len(RACES)), strict=True):
            columns.append(
                torch.full((n, width), torch.nan, device=index.device) if values is None else values.reshape(n, width)
            )
        self.rows.append(torch.cat([column.detach().float() for column in columns], dim=1))

    def compute(self) -> Tensor:
        """All rows, sorted by index, each sample once."""
        rows = dim_zero_cat(self.rows)
        order = torch.argsort(rows[:, 0])
        rows = rows[order]
        first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        first[1:] = rows[1:, 0] != rows[:-1, 0]
        return rows[first]
