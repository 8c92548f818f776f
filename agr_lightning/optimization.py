"""How a network learns: its optimizer, its schedule, and a backbone that may learn later and slower than the heads."""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

# Lightning's own type leaves torch's ReduceLROnPlateau out.
LRSchedulerCallable = Callable[[torch.optim.Optimizer], LRScheduler]

NO_END = "the learning-rate schedule needs an end: give --trainer.max_epochs or --trainer.max_steps."

# Of AdamW, unless the options say otherwise; another optimizer has its own.
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05

# OneCycleLR divides by zero where the way up is a single step.
_FEWEST = 5

# What a run may go on with differently: not every machine has what the first had.
_MAY_DIFFER = ("--trainer.precision", "--seed_everything")

# Places of the heads' and the backbone's weight matrices among an optimizer's groups.
HEADS, BACKBONE = 0, 2


@dataclass(frozen=True)
class Optimization:
    """What the options say of how to learn; see ``AGRModule`` for their meaning.

    Raises:
        UserError: for values that cannot work.
    """

    learning_rate: float | None
    weight_decay: float | None
    backbone_learning_rate: float | None
    freeze_epochs: int
    optimizer: OptimizerCallable | None
    lr_scheduler: LRSchedulerCallable | None
    lr_scheduler_interval: Literal["epoch", "step"]

    def __post_init__(self) -> None:
        for name in ("learning_rate", "backbone_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise UserError(f"--model.{name} {rate} must be above 0 and finite.")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--model.weight_decay {self.weight_decay} must be 0 or more, and finite.")
        if self.freeze_epochs < 0:
            raise UserError(f"--model.freeze_epochs {self.freeze_epochs} must be 0 or more.")

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
        optimizer = self._optimizer(module, backbone, fused)
        if self.lr_scheduler is not None:
            with _explained("--model.lr_scheduler"):
                schedule = self.lr_scheduler(optimizer)
            if isinstance(schedule, ReduceLROnPlateau) and self.lr_scheduler_interval == "step":
                raise UserError("--model.lr_scheduler_interval step: ReduceLROnPlateau looks at val/loss, each epoch.")
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

    def try_out(self) -> None:
        """Takes a step with hardly any weights, since some optimizers and schedules fail only then.

        Raises:
            UserError: when it fails.
        """
        # Not layers, which would draw random numbers.
        module = nn.ModuleList([nn.ParameterList([torch.zeros(2, 2), torch.zeros(2)]) for _ in range(2)])
        plan = cast(dict[str, Any], self.configure(module, module[0], total_steps=10, fused=False))
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with _explained("--model.optimizer"):
            plan["optimizer"].step(lambda: torch.zeros(()))
        schedule = plan["lr_scheduler"]["scheduler"]
        with _explained("--model.lr_scheduler"):
            schedule.step(*([0.0] if isinstance(schedule, ReduceLROnPlateau) else []))

    def _optimizer(self, module: nn.Module, backbone: nn.Module, fused: bool) -> torch.optim.Optimizer:
        own = {id(parameter) for parameter in backbone.parameters()}
        groups: list[dict[str, Any]] = []
        for members, rate in (
            ([p for p in module.parameters() if id(p) not in own], self.learning_rate),
            (list(backbone.parameters()), self.backbone_learning_rate or self.learning_rate),
        ):
            matrices = {"params": [p for p in members if p.ndim > 1], "weight_decay": self.weight_decay, "lr": rate}
            groups.append({name: value for name, value in matrices.items() if value is not None})
            # No decay on biases and normalisation.
            groups.append(groups[-1] | {"params": [p for p in members if p.ndim <= 1], "weight_decay": 0.0})
        if self.optimizer is None:
            return torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused)
        with _explained("--model.optimizer"):
            return self.optimizer(groups)


@contextlib.contextmanager
def _explained(option: str) -> Iterator[None]:
    """Turns what torch says of arguments that cannot work into a line that names the option."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{option}: {' '.join(str(error).split())}") from None


def describe_run(trainer: Trainer) -> dict[str, str | bool]:
    """What a checkpoint remembers of how it was trained, for ``check_same_run``."""
    schedules = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
    averaging = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
    return {
        "--model.optimizer": type(trainer.optimizers[0]).__name__,
        "--model.lr_scheduler": schedules[0] if schedules else "none",
        "averaged weights": averaging,
        "--trainer.precision": trainer.precision,
        # Where Lightning keeps it.
        "--seed_everything": os.environ.get("PL_GLOBAL_SEED", "none"),
    }


def check_same_run(checkpoint: dict[str, Any], trainer: Trainer, total_steps: int | None) -> None:
    """Checks that a checkpoint is gone on with as it was begun.

    Args:
        checkpoint: with what ``describe_run`` said under ``how``.
        trainer: of the run that goes on.
        total_steps: of that run's one-cycle schedule; None under another schedule.

    Raises:
        UserError: when optimizer, schedule, averaging or length differ; other precision or seed is only warned of.
    """
    for name, now in describe_run(trainer).items():
        then = checkpoint.get("how", {}).get(name, now)
        if then != now and name in _MAY_DIFFER:
            _log.warning(
                f"the checkpoint is of a run with {name} {then}, this one has {now}: the outcome will be another than "
                "that of a run that was never stopped."
            )
        elif then != now:
            raise UserError(
                f"the checkpoint is of a run with {name} {then}, this one has {now}: go on with the run's own "
                "--config RUN/config.yaml."
            )
    steps = checkpoint["lr_schedulers"][0].get("total_steps") if checkpoint.get("lr_schedulers") else None
    if None not in (steps, total_steps) and steps != max(total_steps or 0, _FEWEST):
        raise UserError(
            f"the checkpoint is of a run of {steps:,} steps, this one has {total_steps:,}: go on with the run's own "
            "--config RUN/config.yaml, or start a new run from its weights with --model.weights FILE."
        )
