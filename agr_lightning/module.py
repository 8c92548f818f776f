"""AGRModule: one shared step, metrics and optimizer around the network."""

import logging
import math
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from agr_lightning.data.dataset import Batch, PhotoBatch
from agr_lightning.errors import UserError
from agr_lightning.labels import TASKS, Task, check_tasks
from agr_lightning.metrics import PredictionTable, StageMetrics
from agr_lightning.models.backbones import BackboneName
from agr_lightning.models.losses import AgeLossName, JointLoss, LossWeights
from agr_lightning.models.network import AGRNetwork, Predictions, to_predictions
from agr_lightning.models.weights import fetch_imagenet, load_imagenet, load_weights
from agr_lightning.results import Table, interval_margin

_log = logging.getLogger(__name__)

Stage = Literal["train", "val", "test"]

NO_END = "the learning-rate schedule needs an end: give --trainer.max_epochs or --trainer.max_steps."

_PROGRESS = ("loss", "age_mae", "gender_acc", "race_acc")


class AGRModule(lightning.LightningModule):
    """One network for age, gender and race.

    Args:
        backbone: name of the shared feature extractor.
        pretrained: start the backbone from torchvision's ImageNet weights.
        weights: file to start from: a checkpoint of this project, or a state dict of the network or of its
            backbone; null for random weights.
        tasks: what to predict: any of age, gender and race.
        age_loss: l1 (mean absolute error), mse (mean squared error) or smooth_l1 (squared below 3 years).
        loss_weights: what each task's loss is multiplied by.
        label_smoothing: share of each gender and race label that is spread over all classes in training.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of AdamW, on all weights but biases and normalisation.
        dropout: probability of dropping a feature before the heads.
        compile: let torch.compile make the training steps faster; it takes a minute first, for each image size, so
            it pays in long runs.

    Raises:
        UserError: for values that cannot work.
    """

    def __init__(
        self,
        backbone: BackboneName = "agr_cnn",
        pretrained: bool = False,
        weights: str | None = None,
        tasks: list[Task] = list(TASKS),  # noqa: B006 (never changed; the command line shows it)
        age_loss: AgeLossName = "l1",
        loss_weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
        label_smoothing: float = 0.0,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.05,
        dropout: float = 0.2,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(loss_weights, dict):  # as a checkpoint stores them
            loss_weights = LossWeights(**loss_weights)
        # Plain values only, so that a checkpoint loads without running code.
        self.save_hyperparameters(ignore=["loss_weights"])
        self.save_hyperparameters({"loss_weights": asdict(loss_weights)})
        _check_numbers(learning_rate, weight_decay, dropout, label_smoothing)
        if pretrained and weights is not None:
            raise UserError(f"--model.pretrained true and --model.weights {weights} exclude each other.")
        self._backbone, self._pretrained, self._weights = backbone, pretrained, weights
        self._learning_rate, self._weight_decay = learning_rate, weight_decay
        self._compile = compile
        self._compiled: Callable[[Tensor], dict[Task, Tensor]] | None = None
        self.tasks = check_tasks(tasks)
        self.network = AGRNetwork(backbone, self.tasks, dropout)
        self.loss = JointLoss(age_loss, loss_weights, label_smoothing)
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": StageMetrics(self.tasks, self.loss.weights) for stage in ("train", "val", "test")}
        )
        self.table = PredictionTable()
        self._seed = 0
        self._started = False
        self.checkpoint_epoch: int | None = None

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._step(batch, "train")
        self.log("train/loss_step", loss.detach(), on_step=True, on_epoch=False)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: PhotoBatch, batch_idx: int) -> Predictions:
        return self.network.predict(batch.images)

    def _step(self, batch: Batch, stage: Stage) -> Tensor:
        labels: dict[Task, Tensor] = {"age": batch.age, "gender": batch.gender, "race": batch.race}
        network = self._compiled if stage == "train" and self._compiled is not None else self.network
        outputs = network(batch.images)
        losses = self.loss(outputs, labels)
        total: Tensor = self.loss.total(losses)
        metrics = self.metrics[f"{stage}_metrics"]
        assert isinstance(metrics, StageMetrics)
        metrics.update(outputs, labels, losses)
        if stage != "train":
            self.table.update(batch.place, labels, to_predictions(outputs))
        return total

    def on_train_epoch_end(self) -> None:
        self._log_metrics("train")

    def _log_metrics(self, stage: Stage) -> None:
        """Logs the metric objects, which the Trainer computes and resets.

        Once an epoch: doing it in every step changes nothing and costs time.
        """
        metrics = self.metrics[f"{stage}_metrics"]
        assert isinstance(metrics, StageMetrics)
        for name, metric in metrics.named():
            shown = name in _PROGRESS and stage != "test"
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=shown)

    # ------------------------------------------------------------------ around the steps

    def prepare_data(self) -> None:
        """Downloads pretrained weights, in one process, before any training starts."""
        if self._pretrained and self._starts_afresh():
            fetch_imagenet(self._backbone)

    def setup(self, stage: str) -> None:
        """Loads the starting weights of a training run that is not a resumed one."""
        # What --seed_everything set; noted here because every step sets a seed of its own.
        self._seed = torch.initial_seed() % 2**32 + self.trainer.global_rank * 10**6
        if stage == "fit" and self._starts_afresh():
            self.load_start()

    def load_start(self) -> None:
        """Loads the weights that training starts from, once.

        Raises:
            UserError: when they cannot be had, or do not fit the backbone.
        """
        if self._weights is not None and not self._started:
            _log.info(load_weights(self.network, Path(self._weights).expanduser()))
        if self._pretrained and not self._started:
            _log.info(load_imagenet(self.network, self._backbone))
        self._started = True

    def on_fit_start(self) -> None:
        if self._compile:
            # The network alone: Lightning's logging inside would be compiled again and again. Evaluation stays as it
            # is, since the last batch of each would be one more size.
            self._compiled = torch.compile(self.network.forward, dynamic=False)
        if self.device.type == "cpu" and "16" in str(self.trainer.precision) and not _has_bfloat16_units():
            _log.warning(
                f"this CPU has no units for 16-bit floats: --trainer.precision {self.trainer.precision} is many times "
                "slower on it than 32-true."
            )
        _log.info(
            f"{self._backbone}: {sum(p.numel() for p in self.network.parameters()) / 1e6:.2f} M parameters, "
            f"{self.device.type} x {self.trainer.world_size}, precision {self.trainer.precision}"
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.checkpoint_epoch = int(checkpoint["epoch"])
        schedules = checkpoint.get("lr_schedulers")
        trainer = self._trainer  # there is none under load_from_checkpoint
        if trainer is not None and trainer.state.fn == "fit" and schedules:
            then, now = schedules[0]["total_steps"], self._total_steps()
            if then != now:
                raise UserError(
                    f"the checkpoint is of a run of {then:,} steps, this one has {now:,}: go on with the run's own "
                    "--config RUN/config.yaml, or start a new run from its weights with --model.weights FILE."
                )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout then depends on the batch alone, so that a resumed run goes on as if never interrupted.
        torch.manual_seed(self._seed + self.trainer.fit_loop.total_batch_idx)

    def on_validation_epoch_start(self) -> None:
        self.table.reset()

    def on_test_epoch_start(self) -> None:
        self.table.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")
        table = self.predictions()
        if "age" in self.tasks and not self.trainer.sanity_checking:
            self.network.age_margin.fill_(interval_margin(np.abs(table.predicted_age - table.age)))

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predictions(self) -> Table:
        """What was predicted in this validation or test, gathered: to be called on all processes.

        Raises:
            UserError: when outputs are NaN or infinite.
        """
        table = Table.from_rows(self.table.compute().cpu().numpy())
        outputs = {"age": table.predicted_age, "gender": table.gender_probabilities, "race": table.race_probabilities}
        for task in self.tasks:
            if not np.isfinite(outputs[task]).all():
                raise UserError(
                    f"the network's {task} outputs are no numbers any more: training has diverged. "
                    "Start again with a lower --model.learning_rate."
                )
        return table

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW without decay on biases and normalisation, and a one-cycle schedule over the whole run."""
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            groups,
            lr=self._learning_rate,
            weight_decay=self._weight_decay,
            # One pass over the weights instead of eight; Lightning cannot clip gradients beside it.
            fused=self.trainer.gradient_clip_val is None,
        )
        # Smith and Topin, "Super-Convergence", 2018: up for a quarter of the run, then down to almost nothing.
        schedule = OneCycleLR(optimizer, self._learning_rate, total_steps=self._total_steps(), pct_start=0.25)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError(NO_END)
        # OneCycleLR divides by zero where the way up is a single step.
        return max(int(steps), 5)

    def _starts_afresh(self) -> bool:
        return self.trainer.ckpt_path is None and self.trainer.state.fn == "fit"


def _has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself; where that cannot be asked, it is taken to."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return ask is None or platform.machine().lower() not in ("x86_64", "amd64") or bool(ask())


def _check_numbers(learning_rate: float, weight_decay: float, dropout: float, label_smoothing: float) -> None:
    if not 0 < learning_rate < math.inf:
        raise UserError(f"--model.learning_rate {learning_rate} must be above 0 and finite.")
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"--model.weight_decay {weight_decay} must be 0 or more, and finite.")
    for name, share in (("dropout", dropout), ("label_smoothing", label_smoothing)):
        if not 0 <= share < 1:
            raise UserError(f"--model.{name} {share} must be at least 0 and below 1.")
