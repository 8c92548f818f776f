"""Initial weights: from a state dict, or those that torchvision and timm publish."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision import models

from agr_lightning.messages import UserError
from agr_lightning.models.backbones import OURS, TIMM, timm_backbone
from agr_lightning.models.network import AGRNetwork


def load_state(network: AGRNetwork, tensors: Mapping[str, Tensor], source: str) -> str:
    """Loads tensors by name: of an ``AGRNetwork``, or of its backbone alone as its library names them.

    The network gets the backbone and those heads that fit; its other heads keep their weights. Returns a sentence on
    what was loaded, and what was left out and why, which begins with ``source``, the file's name; raises UserError when
    the tensors are not of this backbone.
    """
    # What trainers put before the names of a network's tensors: this project's checkpoints, and DataParallel.
    for wrapper in ("network.", "module."):
        if any(name.startswith(wrapper) for name in tensors):
            tensors = {n.removeprefix(wrapper): value for n, value in tensors.items() if n.startswith(wrapper)}
    prefix = "" if any(name.startswith("backbone.") for name in tensors) else "backbone."
    tensors = {prefix + name: value for name, value in tensors.items()}
    target = network.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in target and value.shape == target[name].shape}
    for name, value in target.items():
        if name.startswith("backbone.") and name not in fitting and not name.endswith("num_batches_tracked"):
            there = "not there"
            if name in tensors:
                there = f"{tuple(tensors[name].shape)} there and {tuple(value.shape)} here"
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
    for reason, names in (
        ("of another shape here", target.keys() & tensors.keys() - fitting.keys()),
        ("not in this network", tensors.keys() - target.keys()),
    ):
        modules = sorted({name.removeprefix("backbone.").rpartition(".")[0] for name in names})
        message += f"; left out, because {reason}: {', '.join(modules[:5])}" if modules else ""
        message += f" and {len(modules) - 5} more" if len(modules) > 5 else ""
    return message


def load_pretrained(network: AGRNetwork) -> str:
    """Loads the weights that torchvision or timm publish for the backbone, from their cache or else downloaded.

    Returns a sentence on it; raises UserError when there are none, or they cannot be had.
    """
    name = network.config.backbone
    if name in OURS:
        raise UserError(
            f"--model.pretrained true: there are no ImageNet weights for {name}; name a file with --model.weights."
        )
    cure = "Download them elsewhere, and name the file with --model.weights."
    try:
        if name.startswith(TIMM):
            source, tensors = "timm's", timm_backbone(name, network.config.image_size, pretrained=True).state_dict()
        else:
            weights = models.get_model_weights(name).DEFAULT
            file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
            cure = f"Put {weights.url} at {file}, or name a file with --model.weights."
            source, tensors = "ImageNet", weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # timm, its hub's client and their network libraries raise anything
        raise UserError(f"--model.pretrained true: cannot load weights for {name} ({error}). {cure}") from None
    return load_state(network, tensors, f"{source} weights")
