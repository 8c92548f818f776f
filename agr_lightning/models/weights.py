"""Weights from a file into a network."""

import errno
import logging
import urllib.error
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from agr_lightning.files import check_readable, named_files, user_path
from agr_lightning.labels import TASKS
from agr_lightning.messages import UserError
from agr_lightning.models.backbones import IMAGENET_WEIGHTS, BackboneName
from agr_lightning.models.network import AGRNetwork
from agr_lightning.models.packed import SEEN
from agr_lightning.runs import PACKED_SUFFIX

_log = logging.getLogger(__name__)

# How a checkpoint of this project names the network's tensors.
NETWORK_PREFIX = "network."


class Start:
    """The weights that training starts from.

    Args:
        backbone: a name from ``BACKBONES``.
        pretrained: whether to start from torchvision's ImageNet weights.
        weights: a file to start from, or files of which the mean is taken; None for random weights.

    Raises:
        UserError: when both are asked for.
    """

    def __init__(self, backbone: BackboneName, pretrained: bool, weights: list[str] | str | None) -> None:
        named = named_files(weights)
        if pretrained and named:
            raise UserError(f"--model.pretrained true and --model.weights {', '.join(named)} exclude each other.")
        self._backbone, self._pretrained = backbone, pretrained
        self._weights = [user_path(name) for name in named]
        self._loaded = False

    def fetch(self) -> None:
        """Downloads what is not there yet: to be called in one process."""
        if self._pretrained:
            fetch_imagenet(self._backbone)

    def skip(self) -> None:
        """Loads nothing: the weights will come from a checkpoint."""
        self._pretrained, self._loaded = False, True

    def load(self, network: AGRNetwork) -> None:
        """Loads them into a network, once, and says what was loaded.

        Raises:
            UserError: when they cannot be had, or do not fit the backbone.
        """
        if self._loaded:
            return
        if self._weights:
            _log.info(load_weights(network, *self._weights))
        elif self._pretrained:
            _log.info(load_imagenet(network, self._backbone))
        self._loaded = True


def read_torch_file(path: Path, option: str) -> dict[str, object]:
    """Reads a file written by ``torch.save``, without running any code that is in it.

    Args:
        path: the file.
        option: how the user named it, for messages.

    Raises:
        UserError: when it is missing, damaged, no such file, or holds more than tensors and plain values.
    """
    check_readable(path, option)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and zip readers raise anything for a damaged file
        with path.open("rb") as file:
            may_be_one = file.read(1) in (b"P", b"\x80")  # how a zip file and a pickle begin
        if may_be_one and ("Unsupported" in str(error) or "GLOBAL" in str(error)):
            raise UserError(
                f"{option} {path} is refused: it holds more than weights and plain values, "
                "and loading it could run code."
            ) from None
        raise UserError(f"{option} {path} is not a checkpoint, or is damaged or cut short.") from None
    if not isinstance(content, dict):
        raise UserError(f"{option} {path} holds a {type(content).__name__}, not a checkpoint or state dict.")
    return content


def load_weights(network: AGRNetwork, *paths: Path) -> str:
    """Loads a checkpoint of this project, or a state dict of ``AGRNetwork`` or of its backbone alone.

    Of several files the mean is loaded: better than each where they are what different trainings made of the same
    starting weights, and worse than nothing where they are not (Wortsman et al., "Model soups", 2022).

    Args:
        network: gets the weights; heads that the files lack keep theirs.
        *paths: the files: what ``torch.save`` wrote, or safetensors by its ending.

    Returns:
        A sentence that says what was loaded, and what was left out and why.

    Raises:
        UserError: when a file cannot be read, or is not of this backbone, or not of the same network as the others.
    """
    first, *others = (_tensors(_read(path)) for path in paths)
    for path, other in zip(paths[1:], others, strict=True):
        if _shapes(other) != _shapes(first):
            raise UserError(f"--model.weights {paths[0]} and {path} are not of one network: they have no mean.")
    source = f"--model.weights {', '.join(map(str, paths))}"
    return _load_state(network, _mean([first, *others]) if others else first, source)


def _mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of weights by name, each of the kind that it is of."""
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _read(path: Path) -> dict[str, object]:
    return (_read_safetensors if path.suffix == PACKED_SUFFIX else read_torch_file)(path, "--model.weights")


def _read_safetensors(path: Path, option: str) -> dict[str, object]:
    check_readable(path, option)
    try:
        return {name: value for name, value in safetensors.torch.load_file(path).items() if name != SEEN}
    except SafetensorError:
        raise UserError(f"{option} {path} is no safetensors file, or is damaged or cut short.") from None


def fetch_imagenet(backbone: BackboneName) -> dict[str, object]:
    """torchvision's ImageNet weights for a backbone, from torch's cache or else downloaded.

    Raises:
        UserError: when there are none for this backbone, or they are not cached and cannot be downloaded.
    """
    if backbone not in IMAGENET_WEIGHTS:
        raise UserError(
            f"--model.pretrained true: there are no ImageNet weights for {backbone}; "
            f"there are for {', '.join(IMAGENET_WEIGHTS)}."
        )
    weights = IMAGENET_WEIGHTS[backbone]
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"--model.pretrained true: the weights for {backbone} cannot be downloaded ({error}). Put "
            f"{weights.url} at {file}, or name a file with --model.weights."
        ) from None


def load_imagenet(network: AGRNetwork, backbone: BackboneName) -> str:
    """Loads torchvision's ImageNet weights into the backbone; returns a sentence on what was loaded."""
    return _load_state(network, _tensors(fetch_imagenet(backbone)), "ImageNet weights")


def _tensors(content: dict[str, object]) -> dict[str, Tensor]:
    """What of a file are weights, by the names that ``AGRNetwork`` has for them."""
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    assert isinstance(state, dict)
    named = {str(name): value for name, value in state.items()}
    if any(name.startswith(NETWORK_PREFIX) for name in named):
        named = {
            name.removeprefix(NETWORK_PREFIX): value for name, value in named.items() if name.startswith(NETWORK_PREFIX)
        }
    state = {name.removeprefix("module."): value for name, value in named.items()}  # as DataParallel names them
    if not any(name.startswith("backbone.") for name in state):
        state = {f"backbone.{name}": value for name, value in state.items()}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _load_state(network: AGRNetwork, tensors: dict[str, Tensor], source: str) -> str:
    target = network.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in target and value.shape == target[name].shape}
    for name in target:
        if name.startswith("backbone.") and name not in fitting and not name.endswith("num_batches_tracked"):
            there = f"{_shape(tensors[name])} there and {_shape(target[name])} here" if name in tensors else "not there"
            raise UserError(
                f"{source} does not fit: {name.removeprefix('backbone.')} is {there}. Name the backbone, the image "
                "size and the tasks that it was made for (--model.backbone, --data.image_size, --model.tasks)."
            )
    loaded = [task for task in network.tasks if all(n in fitting for n in target if n.startswith(f"heads.{task}."))]
    fitting = {n: value for n, value in fitting.items() if not n.startswith("heads.") or n.split(".")[1] in loaded}
    network.load_state_dict(fitting, strict=False)
    text = f"{source}: loaded the backbone"
    text += f" and the heads for {', '.join(loaded)}" if loaded else ""
    fresh = [task for task in network.tasks if task not in loaded]
    text += f"; fresh heads for {', '.join(fresh)}" if fresh else ""
    left = _left_out(network, tensors, fitting)
    return text + (f"; left out {', '.join(left)}" if left else "")


def _left_out(network: AGRNetwork, tensors: dict[str, Tensor], fitting: dict[str, Tensor]) -> list[str]:
    """What of a file was not loaded, and why."""
    heads = [task for task in TASKS if f"heads.{task}.weight" in tensors and f"heads.{task}.weight" not in fitting]
    reasons = []
    for task in heads:
        if task in network.tasks:
            shapes = (_shape(side[f"heads.{task}.weight"]) for side in (tensors, network.state_dict()))
            reasons.append(f"its head for {task} (another kind of head: {' there, '.join(shapes)} here)")
        else:
            reasons.append(f"its head for {task} (not among --model.tasks)")
    names = [name for name in tensors if name not in fitting and not name.startswith("heads.")]
    parts = sorted({name.removeprefix("backbone.").rsplit(".", 1)[0] for name in names})
    if parts:
        more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
        reasons.append(f"{', '.join(parts[:5])}{more} (no such part here)")
    return reasons


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
