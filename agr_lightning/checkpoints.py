"""Trained networks in files: which one is meant, what it holds, and how it is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from agr_lightning import files
from agr_lightning.messages import UserError
from agr_lightning.models.config import NetworkConfig
from agr_lightning.models.network import AGRNetwork

# Where a file says what it holds, and the number of that layout.
KEY, FORMAT = "agr_lightning", 4

# The networks that come with this project, by the names that --ckpt_path and --model.weights take.
SHIPPED = {"agr": files.WEIGHTS / "agr.safetensors", "small": files.WEIGHTS / "agr_small.safetensors"}

# The options of the data module that say for which images a network was made.
_DATA = ("age_min", "age_max", "synthetic")

# Fingerprints, uint8 (n, 32), of the photos that weights have learned from, and of those that they were chosen by.
SEEN = ("training_images", "validation_images")
Seen = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network after training; what is not known is None.

    Attributes:
        config: what the network is.
        state: of its ``AGRNetwork``, calibration included.
        seen: images that it, its initial weights or its teachers have seen.
        data: the options of the data module that say for which images it was made: age_min, age_max, synthetic.
        epoch: of which the weights are, from 0.
        path: the file that it was read from.
        hyperparameters: of a checkpoint, all options that it was trained with: ``model.NAME`` and ``data.NAME``.
    """

    config: NetworkConfig
    state: dict[str, Tensor]
    seen: Seen | None
    data: dict[str, int]
    epoch: int | None
    path: Path = Path()
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of a shipped network, or the path of the file."""
        return next((name for name, path in SHIPPED.items() if path == self.path), str(self.path))

    @property
    def exported(self) -> bool:
        """Whether it is a network alone, and no training that could go on."""
        return self.path.suffix == files.SAFETENSORS_SUFFIX

    def network(self) -> AGRNetwork:
        """The network, to be evaluated; raises UserError when the weights are not those of ``config``."""
        try:
            network = AGRNetwork(self.config)
            network.load_state_dict(self.state)
        except (RuntimeError, UserError) as error:
            reason = " ".join(str(error).rpartition("AGRNetwork:")[2].split())[:200]
            raise UserError(f"{self.name} does not fit the network that it describes: {reason}") from None
        return network.eval().requires_grad_(False)

    def options(self) -> dict[str, Any]:
        """As options: ``model.NAME`` of ``AGRModule`` and ``data.NAME`` of ``UTKFaceDataModule``."""
        if self.hyperparameters:
            return self.hyperparameters
        options = {f"model.{name}": value for name, value in self.config.to_dict().items()}
        options["data.image_size"] = options.pop("model.image_size")
        return options | {f"data.{name}": self.data[name] for name in ("age_min", "age_max") if name in self.data}


def join_seen(*networks: Seen | None) -> Seen | None:
    """What several networks have seen together; None where that of one is not known."""
    known = [seen for seen in networks if seen is not None]
    if len(known) < len(networks):
        return None
    return {name: np.unique(np.concatenate([seen[name] for seen in known]), axis=0) for name in SEEN}


def describe(config: NetworkConfig, data: dict[str, Any], epoch: int | None) -> dict[str, Any]:
    """What a file says of the network in it; ``data`` are options of the data module."""
    made_for = {name: data[name] for name in _DATA if name in data}
    return {"format": FORMAT, "network": config.to_dict(), "data": made_for, "epoch": epoch}


def find_checkpoint(named: str | None, root: Path, option: str = "--ckpt_path") -> Path:
    """The file that ``named`` means; raises UserError when there is none.

    Args:
        named: a file; a run folder, for its best checkpoint; ``best`` or ``last``, for that of the highest-numbered
            run that has one; ``agr`` or ``small`` for a shipped network; None for ``agr``.
        root: the folder that holds ``lightning_logs``.
        option: how the user named it, for messages.
    """
    if named in (files.BEST, files.LAST):
        paths = root.glob(f"{files.RUNS_FOLDER}/version_*/{files.CHECKPOINTS_FOLDER}/{named}.ckpt")
        numbered = {number: file for file in paths if (number := files.number_of(file.parents[1])) is not None}
        if not numbered:
            raise UserError(f"{option} {named}: no run under {root / files.RUNS_FOLDER} has a {named}.ckpt; train one.")
        return numbered[max(numbered)]
    path = SHIPPED["agr"] if named is None else SHIPPED.get(named) or files.user_path(named)
    if path.is_dir():
        path = path / files.CHECKPOINTS_FOLDER / f"{files.BEST}.ckpt"
    if not path.is_file():
        names = "', '".join((files.BEST, files.LAST, *SHIPPED))
        raise UserError(f"{option} {path} does not exist; name a checkpoint file, a run folder, or '{names}'.")
    return path


def load_trained(named: str | None = None, root: Path = Path(), option: str = "--ckpt_path") -> TrainedNetwork:
    """Reads the checkpoint or exported file that ``find_checkpoint`` finds; raises UserError for anything else."""
    path = find_checkpoint(named, root, option)
    if path.suffix.lower() == files.ONNX_SUFFIX:
        raise UserError(f"{option} {path}: ONNX is for predict without --config, --model and --trainer options.")
    trained = read_weights(path, option)[1]
    if trained is None:
        raise UserError(f"{option} {path} does not say what its weights are of: name it with --model.weights.")
    return trained


def read_initial(weights: str | None) -> tuple[dict[str, Tensor], TrainedNetwork | None]:
    """What ``read_weights`` reads of ``--model.weights``; nothing where there are none."""
    if not weights:
        return {}, None
    return read_weights(find_checkpoint(weights, Path(), "--model.weights"), "--model.weights")


def read_weights(path: Path, option: str) -> tuple[dict[str, Tensor], TrainedNetwork | None]:
    """Reads tensors by name, and the trained network that they are where the file says so; runs no code in it.

    The file is of ``torch.save``, or of safetensors by its ending; ``option`` is how the user named it. Raises
    UserError when it is missing, damaged, of another version of this project, or could run code.
    """
    files.check_readable(path, option)
    file = f"{option} {path}"
    try:
        if path.suffix == files.SAFETENSORS_SUFFIX:
            with safe_open(path, "pt") as opened:
                state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                content = {"state_dict": state, KEY: json.loads((opened.metadata() or {}).get(KEY, "null"))}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers of pickles, zip files and JSON raise anything for a damaged file
        reason = "is no checkpoint or safetensors file, or is damaged or cut short"
        if "GLOBAL" in str(error):
            reason = "is refused: it holds more than weights and plain values, and loading it could run code"
        raise UserError(f"{file} {reason}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not a checkpoint or state dict.")
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    state = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if content.get(KEY) is None:
        return state, None
    trained = parse_trained(content | {"state_dict": state}, file, path)
    return trained.state, trained


def parse_trained(content: Mapping[str, Any], file: str, path: Path = Path()) -> TrainedNetwork:
    """The network in what was read from ``path``; raises UserError, which begins with ``file``, where it is none."""
    found, state = content.get(KEY), dict(content["state_dict"])
    facts: dict[str, Any] = found if isinstance(found, dict) else {}
    if facts.get("format") != FORMAT:
        written = str(facts.get("format"))[:20]
        raise UserError(f"{file} is of another version of this project (format {written}, not {FORMAT}): train again.")
    images = {name: state.pop(name, facts.get(name)) for name in SEEN}
    options = {"model": content.get("hyper_parameters", {}), "data": content.get("datamodule_hyper_parameters", {})}
    data: Any = facts.get("data")
    epoch = facts.get("epoch")
    try:
        config = NetworkConfig.from_dict(facts.get("network"))
        sound = [isinstance(epoch, int | None), *(isinstance(part, dict) for part in (data, *options.values()))]
        sound += [each is None or _is_fingerprints(each) for each in images.values()]
        if not all(sound) or not all(name in _DATA and type(value) is int for name, value in data.items()):
            raise UserError("what it says of its training is not what it should be.")
    except UserError as error:
        raise UserError(f"{file} is damaged, or was not written by this project: {error}") from None
    # A checkpoint is a module's, of which the network is an attribute; an exported file holds the network alone.
    prefix = "" if path.suffix == files.SAFETENSORS_SUFFIX else "network."
    state = {
        name.removeprefix(prefix): value.float() if value.dtype == torch.float16 else value
        for name, value in state.items()
        if name.startswith(prefix)
    }
    seen = {name: each.numpy() for name, each in images.items() if each is not None}
    named = {f"{part}.{name}": value for part, values in options.items() for name, value in values.items()}
    return TrainedNetwork(config, state, seen if len(seen) == len(SEEN) else None, data, epoch, path, named)


def _is_fingerprints(found: Any) -> bool:
    return isinstance(found, Tensor) and found.dtype == torch.uint8 and found.ndim == 2 and found.shape[1] == 32


def write_safetensors(path: Path, trained: TrainedNetwork) -> None:
    """Writes a network, whole or not at all: its weights in 16 bits, what they are of, and what they have seen.

    Raises UserError when nobody knows what it has learned from.
    """
    if trained.seen is None:
        raise UserError(f"{trained.name} does not say which images it has learned from: train with UTKFaceDataModule.")
    # Matrices alone: biases, statistics and calibration are few, and not all of them fit 16 bits.
    tensors = {name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in trained.state.items()}
    tensors |= {name: torch.from_numpy(images) for name, images in trained.seen.items()}
    content = save(tensors, {KEY: json.dumps(describe(trained.config, trained.data, trained.epoch))})
    with files.atomic_write(path) as file:
        file.write(content)
