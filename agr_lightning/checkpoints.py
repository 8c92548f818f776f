"""Trained networks in files: which one is meant, what it holds, and how it is written."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from agr_lightning.files import Json, atomic_write, check_readable, user_path
from agr_lightning.messages import UserError
from agr_lightning.models.config import NetworkConfig
from agr_lightning.models.network import AGRNetwork
from agr_lightning.runs import BEST, CHECKPOINTS_FOLDER, LAST, ONNX_SUFFIX, RUNS_FOLDER, SAFETENSORS_SUFFIX, number_of

# Where a file says what it holds, and the number of that layout.
KEY, FORMAT = "agr_lightning", 2

# How Lightning's checkpoints call the tensors of the network.
NETWORK_PREFIX = "network."

# The networks that come with this project, by the names that --ckpt_path and --model.weights take.
_WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = {"agr": _WEIGHTS / f"agr{SAFETENSORS_SUFFIX}", "small": _WEIGHTS / f"agr_small{SAFETENSORS_SUFFIX}"}

# The options of the data module that say for which images a network was made.
_DATA = ("age_min", "age_max", "synthetic")

_IMAGES = ("training_images", "validation_images")

# Where Lightning's checkpoints keep the options of both.
_OPTIONS = {"model": "hyper_parameters", "data": "datamodule_hyper_parameters"}


@dataclass(frozen=True)
class TrainedNetwork:
    """A network after training.

    Attributes:
        config: what the network is.
        state: of its ``AGRNetwork``, calibration included.
        training_images: fingerprints of the images that it has learned from, int64 ``(n,)``; those that its initial
            weights and its teachers had seen are among them. None where that is not known.
        validation_images: fingerprints of those that chose and calibrated it; None where that is not known.
        data: the options of the data module that say for which images it was made: age_min, age_max, synthetic.
        epoch: of which the weights are, from 0; None where that is not known.
        path: the file that it was read from.
        hyperparameters: of a checkpoint, all options that it was trained with: ``model.NAME`` and ``data.NAME``.
    """

    config: NetworkConfig
    state: dict[str, Tensor]
    training_images: NDArray[np.int64] | None
    validation_images: NDArray[np.int64] | None
    data: dict[str, int]
    epoch: int | None
    path: Path = Path()
    hyperparameters: dict[str, Json] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of a shipped network, or the path of the file."""
        return next((name for name, path in SHIPPED.items() if path == self.path), str(self.path))

    @property
    def exported(self) -> bool:
        """Whether it is a network alone, and no training that could go on."""
        return self.path.suffix == SAFETENSORS_SUFFIX

    def network(self) -> AGRNetwork:
        """The network, to be evaluated.

        Raises:
            UserError: when the weights are not those of the network that the file describes.
        """
        try:
            network = AGRNetwork(self.config)
            network.load_state_dict(self.state)
        except (RuntimeError, UserError) as error:
            reason = " ".join(str(error).rpartition("AGRNetwork:")[2].split())[:200]
            raise UserError(f"{self.name} does not fit the network that it describes: {reason}") from None
        return network.eval().requires_grad_(False)

    def options(self) -> dict[str, Json]:
        """As options: ``model.NAME`` of ``AGRModule`` and ``data.NAME`` of ``UTKFaceDataModule``."""
        if self.hyperparameters:
            return self.hyperparameters
        options = {f"model.{name}": value for name, value in self.config.to_dict().items()}
        options["data.image_size"] = options.pop("model.image_size")
        return options | {f"data.{name}": self.data[name] for name in ("age_min", "age_max") if name in self.data}


def describe(config: NetworkConfig, data: dict[str, Any], epoch: int | None) -> dict[str, Any]:
    """What a file says of the network in it; ``data`` are options of the data module."""
    made_for = {name: data[name] for name in _DATA if name in data}
    return {"format": FORMAT, "network": config.to_dict(), "data": made_for, "epoch": epoch}


def load_trained(named: str | None = None, root: Path = Path(), option: str = "--ckpt_path") -> TrainedNetwork:
    """Reads the trained network that ``named`` means; the names are those of ``find_checkpoint``."""
    return read_trained(find_checkpoint(named, root, option), option)


def find_checkpoint(named: str | None, root: Path, option: str = "--ckpt_path") -> Path:
    """The file that ``named`` means.

    Args:
        named: a file; a run folder, for its best checkpoint; ``best`` or ``last``, for that of the highest-numbered
            run that has one; ``agr`` or ``small`` for a shipped network; None for ``agr``.
        root: the folder that holds ``lightning_logs``.
        option: how the user named it, for messages.

    Raises:
        UserError: when there is none.
    """
    if named in (BEST, LAST):
        files = (root / RUNS_FOLDER).glob(f"version_*/{CHECKPOINTS_FOLDER}/{named}.ckpt")
        numbered = {number: file for file in files if (number := number_of(file.parents[1])) is not None}
        if not numbered:
            raise UserError(
                f"{option} {named}: no run under {root / RUNS_FOLDER} has a {named}.ckpt; train one with fit."
            )
        return numbered[max(numbered)]
    named = "agr" if named is None else named
    path = SHIPPED.get(named) or user_path(named)
    if path.is_dir():
        path = path / CHECKPOINTS_FOLDER / f"{BEST}.ckpt"
    if not path.is_file():
        names = "', '".join((BEST, LAST, *SHIPPED))
        raise UserError(f"{option} {path} does not exist; name a checkpoint file, a run folder, or '{names}'.")
    return path


def read_trained(path: Path, option: str = "--ckpt_path") -> TrainedNetwork:
    """Reads a checkpoint or an exported .safetensors file, without running any code that is in it.

    Args:
        path: the file.
        option: how the user named it, for messages.

    Raises:
        UserError: when it is damaged, or was not written by this version of the project.
    """
    if path.suffix.lower() == ONNX_SUFFIX:
        raise UserError(
            f"{option} {path}: an ONNX file is for predict alone, without --config, --model and --trainer options."
        )
    trained = read_weights(path, option)[1]
    if trained is None:
        raise UserError(
            f"{option} {path} holds weights, but does not say of what: start training from it with --model.weights."
        )
    return trained


def read_weights(path: Path, option: str) -> tuple[dict[str, Tensor], TrainedNetwork | None]:
    """Reads tensors by name, and the trained network that they are where the file says so.

    Args:
        path: what ``torch.save`` wrote, or safetensors by its ending.
        option: how the user named it, for messages.

    Raises:
        UserError: when it is missing, damaged, of another version of this project, or could run code.
    """
    check_readable(path, option)
    file = f"{option} {path}"
    content = (_read_safetensors if path.suffix == SAFETENSORS_SUFFIX else _read_torch)(path, file)
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    state = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if content.get(KEY) is None:
        return state, None
    trained = _trained_network(path, file, content, state)
    return trained.state, trained


def _trained_network(path: Path, file: str, content: dict[str, Any], state: dict[str, Tensor]) -> TrainedNetwork:
    facts = content[KEY]
    written = facts.get("format") if isinstance(facts, dict) else facts
    if written != FORMAT:
        raise UserError(
            f"{file} is of another version of this project (its format is {str(written)[:20]}, this version reads "
            f"{FORMAT}): install the version that wrote it, or train or export again."
        )
    images = {name: state.pop(name, facts.get(name)) for name in _IMAGES}
    options = {part: content.get(key) or {} for part, key in _OPTIONS.items()}
    data, epoch = facts.get("data"), facts.get("epoch")
    try:
        config = NetworkConfig.from_dict(facts.get("network"))
        sound = [type(epoch) in (int, NoneType), *map(_are_fingerprints, images.values())]
        sound += [isinstance(part, dict) for part in (data, *options.values())]
        if not all(sound) or not all(name in _DATA and type(value) is int for name, value in data.items()):
            raise UserError("what it says of its training is not what it should be.")
    except UserError as error:
        raise UserError(f"{file} is damaged, or was not written by this project: {error}") from None
    # An exported file holds the network alone, and its matrices in 16 bits.
    prefix = "" if path.suffix == SAFETENSORS_SUFFIX else NETWORK_PREFIX
    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return TrainedNetwork(
        config,
        {name: value.float() if value.dtype == torch.float16 else value for name, value in state.items()},
        **{name: None if value is None else value.numpy() for name, value in images.items()},
        data=data,
        epoch=epoch,
        path=path,
        hyperparameters={f"{part}.{name}": value for part, named in options.items() for name, value in named.items()},
    )


def write_safetensors(path: Path, trained: TrainedNetwork) -> None:
    """Writes a network, whole or not at all: its weights in 16 bits, what they are of, and what they have seen.

    Raises:
        UserError: when nobody knows what it has learned from.
    """
    if trained.training_images is None or trained.validation_images is None:
        raise UserError(
            f"{trained.name} does not say which images it has learned from: train it with UTKFaceDataModule."
        )
    # Matrices alone: biases, statistics and calibration are few, and not all of them fit 16 bits.
    tensors = {name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in trained.state.items()}
    tensors |= {name: torch.from_numpy(getattr(trained, name)) for name in _IMAGES}
    content = save(tensors, {KEY: json.dumps(describe(trained.config, trained.data, trained.epoch))})
    with atomic_write(path) as file:
        file.write(content)


def _read_torch(path: Path, file: str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and zip readers raise anything for a damaged file
        with path.open("rb") as opened:
            may_be_one = opened.read(1) in (b"P", b"\x80")  # how a zip file and a pickle begin
        if may_be_one and ("Unsupported" in str(error) or "GLOBAL" in str(error)):
            raise UserError(
                f"{file} is refused: it holds more than weights and plain values, and loading it could run code."
            ) from None
        raise UserError(f"{file} is not a checkpoint, or is damaged or cut short.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not a checkpoint or state dict.")
    return content


def _read_safetensors(path: Path, file: str) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as opened:
            facts = json.loads((opened.metadata() or {}).get(KEY, "null"))
            return {KEY: facts, "state_dict": {name: opened.get_tensor(name) for name in opened.keys()}}  # noqa: SIM118
    except (SafetensorError, ValueError, RecursionError):
        raise UserError(f"{file} is no safetensors file, or is damaged or cut short.") from None


def _are_fingerprints(value: object) -> bool:
    return value is None or (isinstance(value, Tensor) and value.ndim == 1 and value.dtype == torch.int64)
