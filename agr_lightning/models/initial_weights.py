"""Initial weights: from a state dict, or those that torchvision and timm publish."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision import models

from agr_lightning.messages import UserError
from agr_lightning.models.backbones import TIMM, timm_backbone
from agr_lightning.models.network import AGRNetwork


def load_state(network: AGRNetwork, tensors: Mapping[str, Tensor], source: str) -> str:
    """Loads tensors by name: of an ``AGRNetwork``, or of its backbone alone as its library names them.

    The network gets the backbone and those heads that fit; its other heads keep their weights. Returns a sentence on
    what was loaded, which begins with ``source``; raises UserError when the tensors are not of this backbone.
    """
    # What trainers put before the names of a network's tensors: this project's checkpoints, and DataParallel.
    for wrapper in ("network.", "module."):
        if any(name.startswith(wrapper) for name in tensors):
            tensors = {n.removeprefix(wrapper): value for n, value in tensors.items() if n.startswith(wrapper)}
    if not any(name.startswith("backbone.") for name in tensors):
        tensors = {f"backbone.{name}": value for name, value in tensors.items()}
    state = network.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in state and value.shape == state[name].shape}
    missing = [name for name in state if name not in fitting and not name.endswith("num_batches_tracked")]
    for name in missing:
        if name.startswith("backbone."):
            there = f"{name.removeprefix('backbone.')} of the shape {tuple(state[name].shape)}"
            cure = "name what it was made for with --model.backbone, --data.image_size and --model.tasks"
            raise UserError(f"{source} has no {there}: {cure}.")
    # A head is taken whole or not at all.
    fresh = [task for task in network.tasks if any(name.startswith(f"heads.{task}.") for name in missing)]
    fitting = {n: value for n, value in fitting.items() if not n.startswith(tuple(f"heads.{task}." for task in fresh))}
    state.update(fitting)
    network.load_state_dict(state)
    loaded = [task for task in network.tasks if task not in fresh]
    message = f"{source}: loaded the backbone" + (f" and the heads for {', '.join(loaded)}" if loaded else "")
    message += f"; fresh heads for {', '.join(fresh)}" if fresh else ""
    left_out = len(tensors) - len(fitting)
    message += f"; left out {left_out} tensors that this network lacks or has in another shape" if left_out else ""
    return message


def load_pretrained(network: AGRNetwork) -> str:
    """Loads the weights that torchvision or timm publish for the backbone, from their cache or else downloaded.

    Returns the sentence of ``load_state``; raises UserError when there are none, or they cannot be had.
    """
    name = network.config.backbone
    cure = "Name a file with --model.weights."
    try:
        if name.startswith(TIMM):
            pretrained = timm_backbone(name, network.config.image_size, pretrained=True)
        else:
            weights = models.get_model_weights(name).DEFAULT
            file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
            cure = f"Put {weights.url} at {file}, or name a file with --model.weights."
            pretrained = models.get_model(name, weights=weights)
    except Exception as error:  # timm, its hub's client and their network libraries raise anything
        raise UserError(f"--model.pretrained true: no ImageNet weights for {name} ({error}). {cure}") from None
    return load_state(network, pretrained.state_dict(), "--model.pretrained true")
