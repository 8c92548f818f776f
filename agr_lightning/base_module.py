"""What surrounds the steps of a module: optimizer, learning-rate schedule, checkpoints, and how they are resumed."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import lightning
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from agr_lightning.checkpoints import KEY, SEEN, Seen, TrainedNetwork, describe, join_seen, parse_trained
from agr_lightning.data.duplicates import of_samples
from agr_lightning.messages import UserError
from agr_lightning.models.losses import JointLoss
from agr_lightning.models.network import AGRNetwork

# Lightning's own type leaves torch's ReduceLROnPlateau out.
LRSchedulerCallable = Callable[[torch.optim.Optimizer], LRScheduler]


class BaseModule(lightning.LightningModule):
    """A module around an ``AGRNetwork``, with the optimizer that its options name, and checkpoints that can be resumed.

    Attributes:
        network: of the subclass.
        loss: of the subclass.
        seen: images that its weights had seen before this training began; None where nobody knows.
        loaded_from: what the weights were loaded from; empty for those of a training.
        checkpoint_epoch: of which the loaded weights are.
    """

    network: AGRNetwork
    loss: JointLoss

    def __init__(self, optimizer: OptimizerCallable | None, lr_scheduler: LRSchedulerCallable | None) -> None:
        super().__init__()
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self.seen: Seen | None = dict.fromkeys(SEEN, np.empty((0, 32), np.uint8))
        self.loaded_from = ""
        self.checkpoint_epoch: int | None = None
        self._resumed_schedule = ""

    @property
    def backbone(self) -> torch.nn.Module:
        """The network's, for Lightning's ``BackboneFinetuning``."""
        return self.network.backbone

    def take(self, trained: TrainedNetwork) -> None:
        """Takes over a trained network, and what it has seen; raises UserError when it is one of another form."""
        try:
            self.network.load_state_dict(trained.state)
        except RuntimeError:
            held, asked = trained.config.to_dict(), self.network.config.to_dict()
            names = ", ".join(f"{name} {held[name]}, not {asked[name]}" for name in held if held[name] != asked[name])
            raise UserError(f"{trained.name} is another network than the options describe: {names}.") from None
        self.seen, self.loaded_from, self.checkpoint_epoch = trained.seen, trained.name, trained.epoch

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Reads a module and its weights; what they were initialised from is not needed any more."""
        options = {"pretrained": False, "weights": None} | kwargs
        module = super().load_from_checkpoint(checkpoint_path, *args, **options)
        module.loaded_from = str(checkpoint_path)
        return module

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and one cycle, unless others are to be built; raises UserError for options that cannot work."""
        # Lightning cannot clip gradients beside a fused optimizer.
        adam = partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.05, fused=self.trainer.gradient_clip_val is None)
        optimizer = (self._optimizer or adam)(self._parameter_groups())
        if self._lr_scheduler is not None:
            # The monitored figure is for ReduceLROnPlateau; the others do not look at it.
            plan = LRSchedulerConfigType(scheduler=self._lr_scheduler(optimizer), interval="epoch", monitor="val/loss")
            return {"optimizer": optimizer, "lr_scheduler": plan}
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError("the learning-rate schedule needs an end: --trainer.max_epochs or --trainer.max_steps.")
        # Smith and Topin, "Super-Convergence", 2018: up for a quarter of the run, then down to almost nothing. In five
        # steps at least, since OneCycleLR divides by zero where the way up is a single one.
        peaks, total = [group["lr"] for group in optimizer.param_groups], max(int(steps), 5)
        one_cycle = OneCycleLR(optimizer, peaks, total, pct_start=0.25, cycle_momentum=self._optimizer is None)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Weights and biases of the heads and of the backbone; biases and normalisation do not decay."""
        options, own = self.hparams, set(self.network.backbone.parameters())
        for name in ("learning_rate", "backbone_learning_rate"):
            if options[name] is not None and not 0 < options[name] < math.inf:
                raise UserError(f"--model.{name} {options[name]} must be above 0 and finite.")
        rate, decay = options["learning_rate"], options["weight_decay"]
        groups: list[dict[str, Any]] = []
        for name, members, lr in (
            ("heads", [parameter for parameter in self.parameters() if parameter not in own], rate),
            ("backbone", list(self.network.backbone.parameters()), options["backbone_learning_rate"] or rate),
        ):
            chosen = {option: value for option, value in (("lr", lr), ("weight_decay", decay)) if value is not None}
            groups.append({"name": name, "params": [p for p in members if p.ndim > 1], **chosen})
            biases = [p for p in members if p.ndim <= 1]
            groups.append({"name": f"{name}_biases", "params": biases, **chosen, "weight_decay": 0.0})
        return groups

    def _schedule(self) -> str:
        """Optimizer and schedule, which a resumed run must share with the one that it resumes."""
        if not self.trainer.optimizers:
            return ""
        schedule = self.trainer.lr_scheduler_configs[0].scheduler
        steps = f" over {schedule.total_steps} training steps" if isinstance(schedule, OneCycleLR) else ""
        return f"{type(self.trainer.optimizers[0]).__name__} and {type(schedule).__name__}{steps}"

    def check_resumed(self) -> None:
        """Raises UserError where the run that begins has another schedule than the one that it resumes."""
        if self._resumed_schedule not in ("", self._schedule()):
            raise UserError(
                f"the checkpoint is of a run with {self._resumed_schedule}, this one has {self._schedule()}: resume it "
                "with its own --config RUN/config.yaml, or start a new run from its weights with --model.weights FILE."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data, seen = self.trainer.datamodule, self._seen_so_far()  # type: ignore[attr-defined]
        facts = describe(self.network.config, dict(getattr(data, "hparams", {})), checkpoint["epoch"])
        images = {name: torch.from_numpy(each) for name, each in (seen or {}).items()}
        checkpoint[KEY] = facts | images | {"schedule": self._schedule()}

    def on_fit_end(self) -> None:
        self.seen = self._seen_so_far()

    def _seen_so_far(self) -> Seen | None:
        """What its weights have seen, the images of the training that goes on among it."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "samples"):
            return None
        images = (of_samples(data.samples(split)) for split in ("train", "val"))
        return join_seen(self.seen, dict(zip(SEEN, images, strict=True)))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainer = self._trainer  # there is none under load_from_checkpoint
        fitting = trainer is not None and trainer.state.fn == "fit"
        if self.loaded_from and not fitting and "hpc_ckpt_" in Path(str(getattr(trainer, "ckpt_path", ""))).name:
            # Lightning takes what SLURM's requeueing left behind for the weights that a command names.
            checkpoint["state_dict"] = self.state_dict()
            return
        trained = parse_trained(checkpoint, "the checkpoint")
        self.seen, self.checkpoint_epoch = trained.seen, trained.epoch
        if fitting:
            self._resumed_schedule = checkpoint[KEY].get("schedule", "")
        else:  # a callback that averages weights would put those of the last step in
            checkpoint.pop("callbacks", None)
