"""What is measured while a stage runs: torchmetrics objects, exact over samples, batches and processes."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

from agr_lightning.evaluation.metric_table import prediction_table
from agr_lightning.labels import CLASSES, GENDERS, MISSING, RACES, TASKS, Task
from agr_lightning.messages import UserError
from agr_lightning.models.network import Predictions


class MaskedAccuracy(MulticlassAccuracy):
    """Share of labelled samples whose most probable class is right; NaN when no sample is labelled."""

    def __init__(self, classes: int) -> None:
        # Unchecked: what the network and the index give needs no second look, in every step.
        super().__init__(classes, average="micro", ignore_index=MISSING, validate_args=False)

    def compute(self) -> Tensor:
        counted = torch.as_tensor(self.tp).sum() + torch.as_tensor(self.fn).sum()
        return super().compute() if counted > 0 else torch.full_like(counted, torch.nan, dtype=torch.float32)


class MaskedError(MeanAbsoluteError):
    """Mean absolute error over the labelled samples; NaN when no sample is labelled."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        known = target != MISSING
        super().update(preds[known], target[known])


# The scores of a stage, by the name under which they are logged: the task, and what measures it.
SCORES: dict[str, tuple[Task, Callable[[], Metric]]] = {
    "age_mae": ("age", MaskedError),
    "gender_acc": ("gender", lambda: MaskedAccuracy(len(GENDERS))),
    "race_acc": ("race", lambda: MaskedAccuracy(len(RACES))),
}


class MeanLosses(Metric):
    """The tasks' mean losses, each over the samples that have its label; 0 where there was none.

    Not the means of the batches' losses, which would depend on how the labels fall into batches; and not MeanMetric,
    which looks for NaN in every step and, told not to look, forgets the weights.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        super().__init__()
        self.tasks = tasks
        self.add_state("sums", torch.zeros(len(tasks)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(tasks)), dist_reduce_fx="sum")

    def update(self, losses: dict[Task, Tensor], labels: dict[Task, Tensor]) -> None:
        """Adds a batch: each task's mean loss, and the labels that it is a mean over."""
        counts = torch.stack([(labels[task] != MISSING).sum().float() for task in self.tasks])
        self.sums += torch.stack([losses[task].detach() for task in self.tasks]) * counts
        self.counts += counts

    def compute(self) -> dict[Task, Tensor]:
        """A scalar for each task."""
        return dict(zip(self.tasks, self.sums / self.counts.clamp(min=1), strict=True))


class StageMetrics(nn.Module):
    """Losses and scores of one stage, of the tasks that a network has."""

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        super().__init__()
        self.losses = MeanLosses(tasks)
        self.scores = nn.ModuleDict({name: build() for name, (task, build) in SCORES.items() if task in tasks})

    def update(self, predictions: Predictions, labels: dict[Task, Tensor], losses: dict[Task, Tensor]) -> None:
        """Adds a batch."""
        self.losses.update(losses, labels)
        for name, score in self.scores.items():
            task = SCORES[name][0]
            score.update(getattr(predictions, task).detach(), labels[task])  # type: ignore[operator]

    def compute(self, total: Callable[[dict[Task, Tensor]], Tensor]) -> dict[str, Tensor]:
        """``loss``, the ``total`` of the tasks' losses, ``loss_TASK`` and the ``SCORES``; for all processes to call."""
        losses = self.losses.compute()
        found = {"loss": total(losses).detach(), **{f"loss_{task}": loss for task, loss in losses.items()}}
        return found | {name: score.compute() for name, score in self.scores.items()}  # type: ignore[operator]

    def reset(self) -> None:
        """Forgets all batches."""
        for metric in (self.losses, *self.scores.values()):
            metric.reset()  # type: ignore[operator]


class PredictionTable(Metric):
    """Labels and predictions of every sample, over all processes, in the order of the data set."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        super().__init__()
        self.tasks = tasks
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, labels: dict[Task, Tensor], predictions: Predictions) -> None:
        """Adds a batch."""
        n = len(index)
        columns = [index[:, None]] + [labels[task][:, None] for task in TASKS]
        for values, width in zip(predictions, (1, 1, 1, len(GENDERS), len(RACES), 1), strict=True):
            columns.append(
                torch.full((n, width), torch.nan, device=index.device) if values is None else values.reshape(n, width)
            )
        self.rows.append(torch.cat([column.detach().float() for column in columns], dim=1))

    def compute(self) -> pd.DataFrame:
        """A row a sample, by ``metric_table.TABLE_COLUMNS``; raises UserError where outputs are NaN or infinite."""
        table = prediction_table(dim_zero_cat(self.rows).cpu().numpy())
        for task in self.tasks:
            outputs = [f"prob_{name}" for name in CLASSES[task]] if task in CLASSES else ["predicted_age"]
            if not np.isfinite(table[outputs].to_numpy()).all():
                raise UserError(f"{task} outputs are not finite: train again with a lower --model.learning_rate.")
        return table.drop_duplicates("index").sort_values("index", ignore_index=True)
