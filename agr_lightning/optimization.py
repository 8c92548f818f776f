"""How a network learns: its optimizer, its schedule, and a backbone that may learn later and slower than the heads."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from agr_lightning.errors import UserError

# Lightning's own type leaves torch's ReduceLROnPlateau out.
LRSchedulerCallable = Callable[[torch.optim.Optimizer], LRScheduler]

NO_END = "the learning-rate schedule needs an end: give --trainer.max_epochs or --trainer.max_steps."

# Of AdamW; another optimizer brings its own.
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05

# OneCycleLR divides by zero where the way up is a single step.
_FEWEST = 5

# Places of the heads' and the backbone's weight matrices among an optimizer's groups.
HEADS, BACKBONE = 0, 2


@dataclass(frozen=True)
class Optimization:
    """What the options say of how to learn; see ``AGRModule`` for their meaning.

    Raises:
        UserError: for values that cannot work.
    """

    learning_rate: float
    weight_decay: float
    backbone_learning_rate: float | None
    freeze_epochs: int
    optimizer: OptimizerCallable | None
    lr_scheduler: LRSchedulerCallable | None
    lr_scheduler_interval: Literal["epoch", "step"]

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            for name, given, default in (
                ("learning_rate", self.learning_rate, LEARNING_RATE),
                ("weight_decay", self.weight_decay, WEIGHT_DECAY),
            ):
                if given != default:
                    raise UserError(
                        f"--model.{name} {given} is AdamW's; the optimizer that --model.optimizer names has its own: "
                        f"--model.optimizer.{'lr' if name == 'learning_rate' else name} {given}."
                    )
        for name, rate in (("learning_rate", self.learning_rate), ("backbone_learning_rate", self.own_rate)):
            if not 0 < rate < math.inf:
                raise UserError(f"--model.{name} {rate} must be above 0 and finite.")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--model.weight_decay {self.weight_decay} must be 0 or more, and finite.")
        if self.freeze_epochs < 0:
            raise UserError(f"--model.freeze_epochs {self.freeze_epochs} must be 0 or more.")

    @property
    def own_rate(self) -> float:
        """The peak learning rate of the backbone, when AdamW is the optimizer."""
        return self.learning_rate if self.backbone_learning_rate is None else self.backbone_learning_rate

    @property
    def backbone_differs(self) -> bool:
        """Whether the backbone's learning rate ever differs from that of the heads."""
        return self.backbone_learning_rate is not None or self.freeze_epochs > 0

    def configure(self, module: nn.Module, backbone: nn.Module, total_steps: int, fused: bool) -> OptimizerLRScheduler:
        """Optimizer and schedule in the form that Lightning wants.

        Args:
            module: whose parameters learn.
            backbone: the part of them with a learning rate of its own.
            total_steps: of the whole run, for the one-cycle schedule; 0 where the run has no end.
            fused: let AdamW update all weights in one pass.
        """
        own = {id(parameter) for parameter in backbone.parameters()}
        groups: list[dict[str, Any]] = []
        for members in (
            [p for p in module.parameters() if id(p) not in own],
            list(backbone.parameters()),
        ):
            # No decay on biases and normalisation.
            groups.append({"params": [p for p in members if p.ndim > 1]})
            groups.append({"params": [p for p in members if p.ndim <= 1], "weight_decay": 0.0})
        if self.backbone_learning_rate is not None:
            for group in groups[BACKBONE:]:
                group["lr"] = self.backbone_learning_rate
        optimizer: torch.optim.Optimizer
        if self.optimizer is not None:
            optimizer = self.optimizer(groups)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused)
        if self.lr_scheduler is not None:
            schedule = self.lr_scheduler(optimizer)
            # The monitored figure is for ReduceLROnPlateau; the others do not look at it.
            plan = LRSchedulerConfigType(scheduler=schedule, interval=self.lr_scheduler_interval, monitor="val/loss")
            return {"optimizer": optimizer, "lr_scheduler": plan}
        if not total_steps:
            raise UserError(NO_END)
        # Smith and Topin, "Super-Convergence", 2018: up for a quarter of the run, then down to almost nothing.
        one_cycle = OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=max(total_steps, _FEWEST),
            pct_start=0.25,
            cycle_momentum=self.optimizer is None,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}


def check_same_run(checkpoint: dict[str, Any], optimizer: torch.optim.Optimizer, total_steps: int) -> None:
    """Raises UserError when a checkpoint is of a run with another optimizer, or of another length."""
    then, now = checkpoint.get("optimizer_class"), type(optimizer).__name__
    if then != now:
        raise UserError(
            f"the checkpoint is of a run with {then}, this one has {now}: go on with the run's own "
            "--config RUN/config.yaml."
        )
    steps = checkpoint["lr_schedulers"][0].get("total_steps") if checkpoint.get("lr_schedulers") else None
    if steps is not None and steps != max(total_steps, _FEWEST):
        raise UserError(
            f"the checkpoint is of a run of {steps:,} steps, this one has {total_steps:,}: go on with the run's own "
            "--config RUN/config.yaml, or start a new run from its weights with --model.weights FILE."
        )
