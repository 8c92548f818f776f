"""AGRModule: the network, its losses and metrics, around one step for all stages."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import pandas as pd
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from agr_lightning.base_module import BaseModule, LRSchedulerCallable
from agr_lightning.checkpoints import join_seen, read_initial
from agr_lightning.data.loading import Batch
from agr_lightning.distillation import Distillation
from agr_lightning.labels import MISSING, TASKS, Task
from agr_lightning.messages import UserError
from agr_lightning.metrics import SCORES, PredictionTable, StageMetrics
from agr_lightning.models.calibration import fit_calibration
from agr_lightning.models.config import AgeLossName, AgeReadout, NetworkConfig
from agr_lightning.models.initial_weights import load_pretrained, load_state
from agr_lightning.models.losses import JointLoss, LossWeights
from agr_lightning.models.network import AGRNetwork, Predictions

_log = logging.getLogger(__name__)

Stage = Literal["train", "val", "test"]

# An age error that no network has whose training went well, years.
_NONSENSE = 10_000


class AGRModule(BaseModule):
    """One network for age, gender and race; options that cannot work raise UserError.

    Example:
        ``AGRModule.load_from_checkpoint("lightning_logs/version_0/checkpoints/best.ckpt")(images).age``

    Args:
        backbone: name of the shared feature extractor: agr_cnn, agr_cnn_small, plain_cnn, two_branch_cnn, any of
            torchvision's classification networks, or timm/NAME for any of timm's.
        pretrained: start the backbone from the weights that torchvision or timm has for it.
        weights: initial weights from a file: a checkpoint or exported file of this project, a run folder, agr or
            small for shipped weights, or a state dict of the network or of its backbone; null for random weights.
            backbone, age_loss, age_readout, image_size, grayscale, dropout and tta_flip are those of the file where
            they are null here and it describes its network; else agr_cnn, l1, null, 128, false, 0.2 and false.
        tasks: what to predict: any of age, gender and race.
        age_loss: a number learned by l1 (mean absolute error), mse (mean squared error) or smooth_l1 (squared below 3
            years); a distribution learned by dldl (Gaussian labels) or mean_variance; ordered thresholds by coral.
        age_readout: how an age is read from a distribution or from thresholds: mean or median; null for the mean.
        image_size: side of the images, pixels; the command line takes it from --data.image_size.
        grayscale: leave the colour of the images out.
        dropout: probability of dropping a feature before the heads.
        tta_flip: in evaluation, average the outputs for an image and its mirror image: better, at twice the time.
        loss_weights: what each task's loss is multiplied by.
        label_smoothing: share of each gender and race label that is spread over all classes in training.
        teachers: trained networks whose predictions are learned beside the labels (knowledge distillation): each an
            exported file, a checkpoint, a run folder, or a shipped network's name.
        distillation_weight: share of the training loss that is about the teachers' predictions.
        learning_rate: peak of the one-cycle schedule; null for 0.002, or what another optimizer's arguments say.
        backbone_learning_rate: another learning rate for the backbone; null for that of the heads.
        weight_decay: on all weights but biases and normalisation; null for 0.05, or what another optimizer's arguments
            say.
        optimizer: another optimizer than AdamW, by class path.
        lr_scheduler: another schedule than one-cycle, by class path; it takes a step after each epoch.
        compile: let torch.compile make the training steps faster; it takes a minute first, for each image size, so
            it pays in long runs.
    """

    def __init__(
        self,
        backbone: str | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        tasks: list[Task] = list(TASKS),  # noqa: B006 (never changed; the command line shows it)
        age_loss: AgeLossName | None = None,
        age_readout: AgeReadout | None = None,
        image_size: int | None = None,
        grayscale: bool | None = None,
        dropout: float | None = None,
        tta_flip: bool | None = None,
        loss_weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
        label_smoothing: float = 0.0,
        teachers: list[str] = [],  # noqa: B006 (never changed)
        distillation_weight: float = 0.5,
        learning_rate: float | None = None,
        backbone_learning_rate: float | None = None,
        weight_decay: float | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if isinstance(loss_weights, dict):  # as a checkpoint stores them
            loss_weights = LossWeights(**loss_weights)
        # Plain values only, so that a checkpoint loads without running code.
        self.save_hyperparameters(ignore=["loss_weights", "optimizer", "lr_scheduler"])
        self.save_hyperparameters({"loss_weights": asdict(loss_weights)})
        if pretrained and weights:
            raise UserError(f"--model.pretrained true and --model.weights {weights} exclude each other.")
        self.configure_network()
        self.configure_losses(loss_weights)
        self.configure_metrics()
        self._seed = 0
        self._compiled: Callable[[Tensor], dict[Task, Tensor]] | None = None

    def configure_network(self) -> None:
        """Builds the network, of the form of its initial weights where the options leave it open, and loads these."""
        options = self.hparams
        state, trained = read_initial(options["weights"])
        start = NetworkConfig() if trained is None else trained.config
        self.network = AGRNetwork(start.replaced(options))
        self.save_hyperparameters(self.network.config.to_dict())
        self.tasks = self.network.tasks
        if options["weights"]:
            _log.info(load_state(self.network, state, f"--model.weights {options['weights']}"))
            if trained is not None:
                self.seen = trained.seen
        elif options["pretrained"]:
            _log.info(load_pretrained(self.network))

    def configure_losses(self, weights: LossWeights) -> None:
        """Builds the joint loss."""
        options = self.hparams
        self.loss = JointLoss(options["age_loss"], weights, options["label_smoothing"])
        self.distillation: Distillation | None = None  # its teachers are read when training begins

    def configure_metrics(self) -> None:
        """Builds the metrics of each stage, and the table of predictions."""
        self.train_metrics, self.val_metrics, self.test_metrics = (StageMetrics(self.tasks) for _ in range(3))
        self.table = PredictionTable(self.tasks)

    def forward(self, images: Tensor) -> Predictions:
        """Age in years with its interval, and probabilities of gender and race.

        Args:
            images: faces cropped like UTKFace's: RGB, uint8 ``(batch, 3, height, width)``, of any size.
        """
        training = self.network.training
        self.network.eval()
        with torch.no_grad():
            predictions = self.network.predict(images)
        self.network.train(training)
        return predictions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._step(batch, "train")
        self.log("train/loss_step", loss.detach(), on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Predictions:
        """Predictions for images: a tensor, or the first of a ``PhotoBatch``, a ``Batch`` or another tuple."""
        return self(batch if isinstance(batch, Tensor) else batch[0])  # type: ignore[no-any-return]

    def _step(self, batch: Batch, stage: Stage) -> Tensor:
        labels: dict[Task, Tensor] = {"age": batch.age, "gender": batch.gender, "race": batch.race}
        network = self._compiled if stage == "train" and self._compiled is not None else self.network
        outputs = network(batch.images)
        losses = self.loss(outputs, labels)
        total: Tensor = self.loss.total(losses)
        if stage == "train" and self.distillation is not None:
            taught = self.distillation.losses(batch.images, outputs, self.network)
            total = torch.lerp(total, self.loss.total(losses | taught), self.distillation.weight)
        predictions = self.network.read(outputs)
        getattr(self, f"{stage}_metrics").update(predictions, labels, losses)
        if stage != "train":
            self.table.update(batch.index, labels, predictions)
        return total

    def _log_metrics(self, stage: Stage) -> None:
        """Logs the stage's metrics over all samples and processes."""
        metrics: StageMetrics = getattr(self, f"{stage}_metrics")
        values = metrics.compute(self.loss.total)
        self._check_sane(f"{stage}, step {self.global_step}", values["loss"], values.get("age_mae"))
        for name, value in values.items():
            shown = stage != "test" and (name == "loss" or name in SCORES)
            # The same on all processes already; without sync_dist Lightning warns that it might not be.
            self.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True)
        metrics.reset()

    def _check_sane(self, place: str, loss: Tensor, age_mae: Tensor | None = None) -> None:
        """Raises UserError where the training has diverged, before checkpoints are written."""
        if not loss.isfinite() or (age_mae is not None and age_mae > _NONSENSE):
            found = f"the loss is {loss:.3g}" + ("" if age_mae is None else f" and the age MAE {age_mae:.3g} years")
            raise UserError(f"{place}: {found}, so the training has diverged: lower --model.learning_rate.")

    def setup(self, stage: str) -> None:
        """Prepares what only training needs: seeds and teachers."""
        if "true" in (precision := str(self.trainer.precision)) and precision != "32-true":
            raise UserError(f"--trainer.precision {precision}: expected 32-true, bf16-mixed or 16-mixed.")
        # What --seed_everything set; noted here because every step sets a seed of its own.
        self._seed = torch.initial_seed() % 2**32 + self.trainer.global_rank * 10**6
        if stage != "fit":
            return
        if self.hparams["teachers"]:
            self.distillation = Distillation.load(
                self.hparams["teachers"], self.tasks, self.hparams["distillation_weight"]
            )
            self.seen = join_seen(self.seen, *(teacher.seen for teacher in self.distillation.trained))
            _log.info(f"learns from {', '.join(self.hparams['teachers'])} beside the labels")
        if self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            self._check_labels(self.trainer.datamodule.samples("train"))  # type: ignore[attr-defined]

    def _check_labels(self, samples: pd.DataFrame) -> None:
        """Raises UserError for a task that neither labels nor teachers teach."""
        teachers = () if self.distillation is None else self.distillation.trained
        taught = {task for teacher in teachers for task in teacher.config.tasks}
        learned = [task for task in self.tasks if task in taught or (samples[task] != MISSING).any()]
        for task in self.tasks:
            if task not in learned:
                cure = f"leave it out with --model.tasks '[{', '.join(learned)}]'" if learned else "label some"
                raise UserError(f"no training image has a label for {task}: {cure}.")

    def on_fit_start(self) -> None:
        size = self.network.config.image_size
        data = dict(getattr(self.trainer.datamodule, "hparams", {}))  # type: ignore[attr-defined]
        if (found := data.get("image_size", size)) != size:
            raise UserError(f"the images are {found} px (image_size of the data module), the network is for {size}.")
        if not self.trainer.ckpt_path:
            self.network.calibration.reset()  # that of the initial weights, which change
        if any(isinstance(each, BatchSizeFinder | LearningRateFinder) for each in self.trainer.callbacks):  # type: ignore[attr-defined]
            self.trainer.strategy.setup_optimizers(self.trainer)  # for what they have found
        elif self.trainer.ckpt_path:
            self.check_resumed()
        if self.hparams["compile"]:
            # The network alone: Lightning's logging inside would be compiled again and again. Evaluation stays as it
            # is, since the last batch of each would be one more size.
            self._compiled = torch.compile(self.network.forward, dynamic=False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout then depends on the batch alone, so that a resumed run goes on as if never interrupted.
        torch.manual_seed(self._seed + self.trainer.fit_loop.total_batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx % max(1, self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]  # a GPU waits for it
            self._check_sane(f"step {self.global_step}", outputs["loss"])

    def on_train_epoch_end(self) -> None:
        self._log_metrics("train")

    def on_validation_epoch_start(self) -> None:
        self.table.reset()
        if self._calibrating():
            self.network.calibration.reset()

    on_test_epoch_start = on_validation_epoch_start  # which calibrates in fit alone

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")
        table = self.table.compute()  # which says where outputs are not finite
        if self._calibrating():
            self.network.calibration.load_state_dict(fit_calibration(table))

    def _calibrating(self) -> bool:
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")
