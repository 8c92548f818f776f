"""What a checkpoint was trained with, as options of the command that uses it."""

from typing import Any, cast

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from agr_lightning.checkpoints import Checkpoint, splits_of
from agr_lightning.messages import UserError
from agr_lightning.models.age import AGE_LOSSES
from agr_lightning.models.backbones import plan_of


def options_of(checkpoint: Checkpoint, given: Namespace, parser: LightningArgumentParser) -> dict[str, Any]:
    """What a checkpoint was trained with, as defaults of the options; its own split first of all."""
    stored = {f"model.{name}": value for name, value in checkpoint.model.items()}
    stored |= {f"data.{name}": value for name, value in checkpoint.data.items()}
    # They name code, and this project's checkpoints do not hold them.
    stored = {name: value for name, value in stored.items() if name not in ("model.optimizer", "model.lr_scheduler")}
    weights = stored.pop("model.loss_weights", None)
    if isinstance(weights, dict):
        stored |= {f"model.loss_weights.{task}": weight for task, weight in weights.items()}
    stored.pop("data.predict_path", None)
    if given.data.root is not None:
        stored.pop("data.synthetic", None)
    if given.data.synthetic:
        # Other cards than those of the run have other names.
        stored.pop("data.root", None)
        if given.data.synthetic != checkpoint.data.get("synthetic"):
            stored.pop("data.split", None)
    lists = splits_of(checkpoint.path)
    if lists is not None and "data.split" in stored:
        stored["data.split"] = str(lists)
    known = {action.dest for action in parser._actions}
    return {name: value for name, value in stored.items() if name in known}


def check_fit_together(checkpoint: Checkpoint, options: Namespace) -> None:
    """Raises UserError when the options ask for another network than the checkpoint holds."""
    held, asked = checkpoint.model, options.model
    # An exported file does not say how it was trained, only what it is.
    names = [name for name in ("backbone", "loss_weighting") if name in held]
    differing = [f"model.{name}" for name in names if held[name] != asked[name]]
    if set(cast(list[str], held.get("tasks", []))) != set(asked.tasks):
        differing.append("model.tasks")
    if "age" in asked.tasks and _head(held.get("age_loss")) != _head(asked.age_loss):
        differing.append("model.age_loss")
    if checkpoint.data.get("grayscale") != options.data.grayscale:
        differing.append("data.grayscale")
    if plan_of(asked.backbone).one_size and checkpoint.data.get("image_size") != options.data.image_size:
        differing.append("data.image_size")
    for name in differing:
        there = (checkpoint.data if name.startswith("data.") else held).get(name.split(".")[1])
        raise UserError(
            f"{checkpoint.called} was trained with --{name} {_shown(there)}, not {_shown(options[name])}: "
            f"leave --{name} out."
        )


def _head(age_loss: object) -> str | None:
    return AGE_LOSSES[age_loss].head if age_loss in AGE_LOSSES else None


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
