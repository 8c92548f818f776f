"""AGRModule: one shared step, metrics and optimizer around the network."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from agr_lightning.data.dataset import Batch, PhotoBatch
from agr_lightning.evaluation.calibration import fit_calibration
from agr_lightning.evaluation.table import Table
from agr_lightning.labels import RACES, TASKS, Task
from agr_lightning.messages import UserError
from agr_lightning.metrics import PredictionTable, StageMetrics
from agr_lightning.models.age import AgeLossName, AgeReadout
from agr_lightning.models.backbones import BackboneName
from agr_lightning.models.losses import JointLoss, LossWeights, Weighting, balanced_weights
from agr_lightning.models.network import AGRNetwork, Predictions, network_options
from agr_lightning.models.teaching import DEFAULT_TEACHING, Teachers
from agr_lightning.models.weights import Start
from agr_lightning.optimization import (
    BACKBONE,
    HEADS,
    LRSchedulerCallable,
    Optimization,
    check_same_run,
    describe_run,
)

Stage = Literal["train", "val", "test"]

_CALIBRATION = "network.calibration."

_PROGRESS = ("loss", "age_mae", "gender_acc", "race_acc")


class AGRModule(lightning.LightningModule):
    """One network for age, gender and race.

    Args:
        backbone: name of the shared feature extractor.
        pretrained: start the backbone from torchvision's ImageNet weights.
        weights: file to start from: a checkpoint of this project, or a state dict of the network or of its
            backbone; of a list of files the mean; null for random weights.
        teachers: trained networks, each an exported file, a checkpoint or a run folder, whose answers are learned
            beside the labels.
        teaching: share of the training loss that is about the teachers' answers, where there are teachers.
        tasks: what to predict: any of age, gender and race.
        age_loss: a number learned by l1 (mean absolute error), mse (mean squared error) or smooth_l1 (squared below 3
            years); a distribution learned by dldl (Gaussian labels) or mean_variance; ordered thresholds by coral.
        age_readout: how an age is read from a distribution or from thresholds: mean or median; null for the mean.
        loss_weights: what each task's loss is multiplied by.
        loss_weighting: fixed weights, or uncertainty: learned ones that start from these.
        race_class_weights: what the race loss of each class is multiplied by: none, balanced (each class counts the
            same), or a list of five numbers.
        label_smoothing: share of each gender and race label that is spread over all classes in training.
        learning_rate: peak of the one-cycle schedule; null for 0.002, or what another optimizer's arguments say.
        weight_decay: on all weights but biases and normalisation; null for 0.05, or what another optimizer's arguments
            say.
        dropout: probability of dropping a feature before the heads.
        mirror: in evaluation, average the answers for an image and for its mirror image: better, at twice the time.
        backbone_learning_rate: another learning rate for the backbone; null for that of the heads.
        freeze_epochs: keep the backbone as it is for so many epochs, while the heads learn.
        optimizer: another optimizer than AdamW, by class path.
        lr_scheduler: another schedule than one-cycle, by class path.
        lr_scheduler_interval: when that schedule takes a step: after each epoch, or after each training step.
        compile: let torch.compile make the training steps faster; it takes a minute first, for each image size, so
            it pays in long runs.
        input_size: side of the images, pixels; the command line takes it from --data.image_size.
        grayscale: leave the colour of the images out; the command line takes it from --data.grayscale.

    Raises:
        UserError: for values that cannot work.
    """

    def __init__(
        self,
        backbone: BackboneName = "agr_cnn",
        pretrained: bool = False,
        weights: list[str] | str | None = None,
        teachers: list[str] = [],  # noqa: B006 (never changed)
        teaching: float = DEFAULT_TEACHING,
        tasks: list[Task] = list(TASKS),  # noqa: B006 (never changed; the command line shows it)
        age_loss: AgeLossName = "l1",
        age_readout: AgeReadout | None = None,
        loss_weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
        loss_weighting: Weighting = "fixed",
        race_class_weights: Literal["none", "balanced"] | list[float] = "none",
        label_smoothing: float = 0.0,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        dropout: float = 0.2,
        mirror: bool = False,
        backbone_learning_rate: float | None = None,
        freeze_epochs: int = 0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        compile: bool = False,
        # Not image_size, as the data module says: Lightning takes two values of one name for a mistake.
        input_size: int = 128,
        grayscale: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(loss_weights, dict):  # as a checkpoint stores them
            loss_weights = LossWeights(**loss_weights)
        # Plain values only, so that a checkpoint loads without running code.
        self.save_hyperparameters(ignore=["loss_weights", "optimizer", "lr_scheduler"])
        self.save_hyperparameters({"loss_weights": asdict(loss_weights)})
        for name, share in (("dropout", dropout), ("label_smoothing", label_smoothing)):
            if not 0 <= share < 1:
                raise UserError(f"--model.{name} {share} must be at least 0 and below 1.")
        self.start = Start(backbone, pretrained, weights)
        if freeze_epochs and not (pretrained or weights):
            raise UserError(
                f"--model.freeze_epochs {freeze_epochs} would freeze random weights: "
                "start from --model.pretrained true or --model.weights FILE."
            )
        self.optimization = Optimization(
            *(learning_rate, weight_decay, backbone_learning_rate, freeze_epochs),
            *(optimizer, lr_scheduler, lr_scheduler_interval),
        )
        self._compile = compile
        self._compiled: Callable[[Tensor], dict[Task, Tensor]] | None = None
        self.network_options = network_options(
            backbone, tasks, age_loss, input_size, age_readout, dropout, grayscale, mirror
        )
        self.network = AGRNetwork(**self.network_options)  # type: ignore[arg-type]
        self.tasks = self.network.tasks
        self.loss = JointLoss(age_loss, loss_weights, label_smoothing, loss_weighting, self.tasks)
        self.teachers: Teachers | None = None
        self._race_class_weights = race_class_weights
        if isinstance(race_class_weights, list):
            self.loss.weigh_races(race_class_weights)
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": StageMetrics(self.tasks, self.loss.total) for stage in ("train", "val", "test")}
        )
        self.table = PredictionTable()
        self._seed = 0
        self.checkpoint_epoch: int | None = None
        self.loaded_from: str | Path | None = None
        self._calibration: dict[str, Tensor] | None = None
        self._resumed: dict[str, Any] | None = None

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._step(batch, "train")
        self.log("train/loss_step", loss.detach(), on_step=True, on_epoch=False)
        groups = self.trainer.optimizers[0].param_groups
        self.log("train/learning_rate", groups[HEADS]["lr"], on_step=True, on_epoch=False)
        if self.optimization.backbone_differs:
            rate = 0.0 if self.network.frozen else groups[BACKBONE]["lr"]
            self.log("train/learning_rate_backbone", rate, on_step=True, on_epoch=False)
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
        if stage == "train" and self.teachers is not None:
            taught = self.teachers.losses(batch.images, outputs, self.network)
            total = torch.lerp(total, self.loss.total(losses | taught), self.teachers.share)
        metrics = self.metrics[f"{stage}_metrics"]
        assert isinstance(metrics, StageMetrics)
        predictions = self.network.read(outputs)
        metrics.update(predictions, labels, losses)
        if stage != "train":
            self.table.update(batch.place, labels, predictions)
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
        if self._starts_afresh():
            self.start.fetch()

    def setup(self, stage: str) -> None:
        """Loads the starting weights of a training run that is not a resumed one."""
        # What --seed_everything set; noted here because every step sets a seed of its own.
        self._seed = torch.initial_seed() % 2**32 + self.trainer.global_rank * 10**6
        if stage == "fit" and self._starts_afresh():
            self.start.load(self.network)
        if stage == "fit" and self._race_class_weights == "balanced":
            races = self.trainer.datamodule.split["train"].race  # type: ignore[attr-defined]
            self.loss.weigh_races(balanced_weights(np.bincount(races[races >= 0], minlength=len(RACES)).tolist()))

    def on_fit_start(self) -> None:
        if self._resumed is not None:
            own_schedule = self.optimization.lr_scheduler is not None
            check_same_run(self._resumed, self.trainer, None if own_schedule else self._total_steps())
            self._resumed = None
        if self._compile:
            # The network alone: Lightning's logging inside would be compiled again and again. Evaluation stays as it
            # is, since the last batch of each would be one more size.
            self._compiled = torch.compile(self.network.forward, dynamic=False)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.network.frozen:
            for parameter in self.network.backbone.parameters():
                parameter.grad = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.optimizers:
            checkpoint["how"] = describe_run(self.trainer)
        for name, value in (self._calibration or {}).items():
            checkpoint["state_dict"][_CALIBRATION + name] = value  # as in on_train_end

    def take(self, state: dict[str, Tensor], epoch: int | None, origin: str | Path) -> None:
        """Takes a network's weights, which are of an epoch, from somewhere."""
        self.network.load_state_dict(state)
        self.checkpoint_epoch, self.loaded_from = epoch, origin

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.checkpoint_epoch = int(checkpoint["epoch"])
        state = checkpoint["state_dict"]
        self._calibration = {
            name.removeprefix(_CALIBRATION): value for name, value in state.items() if name.startswith(_CALIBRATION)
        }
        if self._trainer is not None and self._trainer.state.fn == "fit":  # there is none under load_from_checkpoint
            self._resumed = checkpoint
            state["loss.race_weights"] = self.loss.race_weights.clone()  # what the options say now
        else:  # one that averages weights would put those of the last step in
            checkpoint.pop("callbacks", None)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Here, since a run that is gone on with inside an epoch does not begin that epoch again.
        frozen = self.current_epoch < self.optimization.freeze_epochs
        if frozen != self.network.frozen:
            # Several devices wait for the gradients of all weights: there they are computed, and not used.
            self.network.freeze(frozen, detached=self.trainer.world_size == 1)
        # Dropout then depends on the batch alone, so that a resumed run goes on as if never interrupted.
        torch.manual_seed(self._seed + self.trainer.fit_loop.total_batch_idx)

    def on_validation_epoch_start(self) -> None:
        self.table.reset()
        if self._calibrating():
            self.network.calibration.reset()

    on_test_epoch_start = on_validation_epoch_start  # which calibrates in fit alone

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")
        table = self.predictions()
        if self._calibrating():
            self._calibration = fit_calibration(table)
            self.network.calibration.load_state_dict(self._calibration)

    def on_train_end(self) -> None:
        # A callback that averages weights has averaged this with what it was before.
        if self._calibration is not None:
            self.network.calibration.load_state_dict(self._calibration)

    def _calibrating(self) -> bool:
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predictions(self) -> Table:
        """What was predicted in this validation or test, gathered: to be called on all processes.

        Raises:
            UserError: when outputs are NaN or infinite.
        """
        table = Table.from_rows(self.table.compute().cpu().numpy())
        diverged = table.not_finite(self.tasks)
        if diverged:
            raise UserError(
                f"the network's {diverged} outputs are no numbers any more: training has diverged. "
                "Start again with a lower --model.learning_rate."
            )
        return table

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and a one-cycle schedule over the whole run, or what the options say."""
        # Lightning cannot clip gradients beside a fused optimizer.
        fused = self.trainer.gradient_clip_val is None
        return self.optimization.configure(self, self.network.backbone, self._total_steps(), fused)

    def _total_steps(self) -> int:
        """Of the whole run; 0 where it has no end."""
        steps = self.trainer.estimated_stepping_batches
        return 0 if math.isinf(steps) else int(steps)

    def _starts_afresh(self) -> bool:
        return self.trainer.ckpt_path is None and self.trainer.state.fn == "fit"
