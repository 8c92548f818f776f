"""Initial weights: from a state dict, or those that torchvision and timm publish."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision import models

from agr_lightning.messages import UserError
from agr_lightning.models.backbones import OURS, TIMM, timm_backbone
from agr_lightning.models.network import AGRNetwork


def load_state(network: AGRNetwork, tensors: Mapping[str, Tensor], source: str) -> str:
    """Loads tensors by name: of an ``AGRNetwork``, or of its backbone alone as its library names them.

    Args:
        network: gets the backbone and those heads that fit; the others keep their weights.
        tensors: what was read.
        source: what the user named, for messages.

    Returns:
        A sentence on what was loaded, and what was left out and why.

    Raises:
        UserError: when they are not of this backbone.
    """
    tensors = _by_our_names(tensors)
    target = network.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in target and value.shape == target[name].shape}
    for name, value in target.items():
        if name.startswith("backbone.") and name not in fitting and not name.endswith("num_batches_tracked"):
            there = f"{_shape(tensors[name])} there and {_shape(value)} here" if name in tensors else "not there"
            raise UserError(
                f"{source} does not fit: {name.removeprefix('backbone.')} is {there}. Name the backbone, the image "
                "size and the tasks that it was made for (--model.backbone, --data.image_size, --model.tasks)."
            )
    loaded = [task for task in network.tasks if all(n in fitting for n in target if n.startswith(f"heads.{task}."))]
    fitting = {n: value for n, value in fitting.items() if not n.startswith("heads.") or n.split(".")[1] in loaded}
    network.load_state_dict(fitting, strict=False)
    fresh = [task for task in network.tasks if task not in loaded]
    message = f"{source}: loaded the backbone" + (f" and the heads for {', '.join(loaded)}" if loaded else "")
    message += f"; fresh heads for {', '.join(fresh)}" if fresh else ""
    other = _parts(name for name in tensors if name in target and name not in fitting)
    message += f"; left out, because of another shape here: {other}" if other else ""
    unknown = _parts(name for name in tensors if name not in target)
    return message + (f"; left out, because not in this network: {unknown}" if unknown else "")


def load_pretrained(network: AGRNetwork) -> str:
    """Loads the weights that torchvision or timm publish for the backbone, from their cache or else downloaded.

    Returns a sentence on it; raises UserError when there are none, or they cannot be had.
    """
    name = network.config.backbone
    if name in OURS:
        raise UserError(
            f"--model.pretrained true: there are no ImageNet weights for {name}; name a file with --model.weights."
        )
    if name.startswith(TIMM):
        try:
            tensors = timm_backbone(name, network.config.image_size, pretrained=True).state_dict()
        except Exception as error:  # timm, its hub's client and their network libraries raise anything
            raise UserError(
                f"--model.pretrained true: timm cannot load weights for {name} ({type(error).__name__}: {error}). "
                "Download them elsewhere, and name the file with --model.weights."
            ) from None
        return load_state(network, tensors, "timm's weights")
    weights = models.get_model_weights(name).DEFAULT
    try:
        return load_state(network, weights.get_state_dict(progress=True, check_hash=True), "ImageNet weights")
    except (OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
        raise UserError(
            f"--model.pretrained true: the weights for {name} cannot be downloaded ({error}). Put {weights.url} at "
            f"{file}, or name a file with --model.weights."
        ) from None


def _by_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # What trainers put before the names of a network's tensors: this project's checkpoints, and DataParallel.
    for wrapper in ("network.", "module."):
        if any(name.startswith(wrapper) for name in tensors):
            tensors = {n.removeprefix(wrapper): value for n, value in tensors.items() if n.startswith(wrapper)}
    prefix = "" if any(name.startswith("backbone.") for name in tensors) else "backbone."
    return {prefix + name: value for name, value in tensors.items()}


def _parts(names: Iterable[str]) -> str:
    """The modules that tensors belong to; of many, the first five."""
    parts = sorted({name.removeprefix("backbone.").rpartition(".")[0] for name in names})
    return ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
