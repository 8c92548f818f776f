"""Optimizer and learning-rate schedule: AdamW and one cycle, or what the options of ``AGRModule`` name."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from agr_lightning.messages import UserError

# Lightning's own type leaves torch's ReduceLROnPlateau out.
LRSchedulerCallable = Callable[[torch.optim.Optimizer], LRScheduler]


def configure(
    module: LightningModule,
    backbone: nn.Module,
    optimizer: OptimizerCallable | None,
    lr_scheduler: LRSchedulerCallable | None,
) -> OptimizerLRScheduler:
    """Optimizer and schedule in the form that Lightning wants: AdamW and one cycle, unless others are to be built.

    ``module`` has the parameters and options of an ``AGRModule``; ``backbone`` is the part of it with a learning rate
    of its own. Raises UserError for options that cannot work.
    """
    options, trainer = module.hparams, module.trainer
    groups = _parameter_groups(module, backbone, options)
    # Lightning cannot clip gradients beside a fused optimizer.
    adam = partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.05, fused=trainer.gradient_clip_val is None)
    built = (optimizer or adam)(groups)
    if lr_scheduler is not None:
        schedule, interval = lr_scheduler(built), options["lr_scheduler_interval"]
        if isinstance(schedule, ReduceLROnPlateau) and interval == "step":
            raise UserError("--model.lr_scheduler_interval step: ReduceLROnPlateau looks at val/loss, each epoch.")
        # The monitored figure is for ReduceLROnPlateau; the others do not look at it.
        plan = LRSchedulerConfigType(scheduler=schedule, interval=interval, monitor="val/loss")
        return {"optimizer": built, "lr_scheduler": plan}
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise UserError("the learning-rate schedule needs an end: give --trainer.max_epochs or --trainer.max_steps.")
    # Smith and Topin, "Super-Convergence", 2018: up for a quarter of the run, then down to almost nothing. In five
    # steps at least, since OneCycleLR divides by zero where the way up is a single one.
    peaks, total = [group["lr"] for group in built.param_groups], max(int(steps), 5)
    one_cycle = OneCycleLR(built, peaks, total, pct_start=0.25, cycle_momentum=optimizer is None)
    return {"optimizer": built, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}


def _parameter_groups(module: nn.Module, backbone: nn.Module, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Weights and biases of the heads and of the backbone; biases and normalisation do not decay."""
    for name in ("learning_rate", "backbone_learning_rate"):
        if options[name] is not None and not 0 < options[name] < math.inf:
            raise UserError(f"--model.{name} {options[name]} must be above 0 and finite.")
    own = set(backbone.parameters())
    rate, decay = options["learning_rate"], options["weight_decay"]
    groups: list[dict[str, Any]] = []
    for name, members, lr in (
        ("heads", [parameter for parameter in module.parameters() if parameter not in own], rate),
        ("backbone", list(backbone.parameters()), options["backbone_learning_rate"] or rate),
    ):
        chosen = {option: value for option, value in (("lr", lr), ("weight_decay", decay)) if value is not None}
        groups.append({"name": name, "params": [p for p in members if p.ndim > 1], **chosen})
        biases = [p for p in members if p.ndim <= 1]
        groups.append({"name": f"{name}_biases", "params": biases, **chosen, "weight_decay": 0.0})
    return groups


def describe_schedule(trainer: Trainer) -> dict[str, str | int]:
    """What a resumed run must share with the run that it resumes."""
    if not trainer.optimizers:
        return {}
    schedule = trainer.lr_scheduler_configs[0].scheduler
    names = {"--model.optimizer": type(trainer.optimizers[0]), "--model.lr_scheduler": type(schedule)}
    found: dict[str, str | int] = {name: each.__name__ for name, each in names.items()}
    return found | ({"training steps": schedule.total_steps} if isinstance(schedule, OneCycleLR) else {})


def check_resumed(before: Mapping[str, str | int], trainer: Trainer) -> None:
    """Raises UserError where a run differs from the one that it resumes, as ``describe_schedule`` described that."""
    for name, now in describe_schedule(trainer).items():
        if (then := before.get(name, now)) != now:
            raise UserError(
                f"the checkpoint is of a run with {name} {then}, this one has {now}: resume it with its own "
                "--config RUN/config.yaml, or start a new run from its weights with --model.weights FILE."
            )
