"""A trained network in one safetensors file: its weights in 16 bits, what they are of, and whom they have seen."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from agr_lightning.errors import UserError
from agr_lightning.files import Json, atomic_write, check_readable, user_path
from agr_lightning.run_files import PACKED_SUFFIX

# Another layout of the file gets another number.
_FORMAT = "1"
_KEY = "agr_lightning"

# What of the arguments of module and data module is about the network, and not about training or somebody's folders,
# and of which kind each is. A file with anything else is refused: it could set other options.
OF_MODEL: dict[str, tuple[type, ...]] = {
    "backbone": (str,),
    "tasks": (list,),
    "age_loss": (str,),
    "age_readout": (str, NoneType),
    "dropout": (float,),
    "mirror": (bool,),
}
_OF_DATA: dict[str, tuple[type, ...]] = {
    "image_size": (int,),
    "grayscale": (bool,),
    "age_min": (int,),
    "age_max": (int,),
}

# The tensor that is no weight.
SEEN = "seen"


@dataclass(frozen=True)
class Packed:
    """A trained network.

    Attributes:
        model: the arguments of ``AGRModule`` that are about the network.
        data: those of ``UTKFaceDataModule``.
        epoch: of which the weights are, from 0; None where that is not known.
        state: of its ``AGRNetwork``, calibration included; the file rounds its matrices to 16 bits.
        seen: digests of the names of the images that it was trained, chosen or calibrated by, int64 ``(n,)``, sorted.
    """

    model: dict[str, Json]
    data: dict[str, Json]
    epoch: int | None
    state: dict[str, Tensor]
    seen: NDArray[np.int64]


def pack(
    model: dict[str, Json],
    data: dict[str, Json],
    epoch: int | None,
    state: dict[str, Tensor],
    seen: NDArray[np.int64],
) -> Packed:
    """What ``write_packed`` writes.

    Args:
        model: all arguments of ``AGRModule``.
        data: all arguments of ``UTKFaceDataModule``.
        epoch: see ``Packed``.
        state: of an ``AGRNetwork``, 32 bits.
        seen: see ``Packed``, in any order.
    """
    kept = [{name: facts[name] for name in kinds if name in facts} for facts, kinds in _kinds(model, data)]
    return Packed(kept[0], kept[1], epoch, state, np.unique(seen))


def write_packed(path: Path, packed: Packed) -> None:
    """Writes the file, whole or not at all."""
    # Matrices alone: biases, statistics and calibration are few, and not all of them fit 16 bits.
    tensors = {
        name: value.half().contiguous() if value.ndim > 1 else value.contiguous()
        for name, value in packed.state.items()
    }
    tensors[SEEN] = torch.from_numpy(packed.seen)
    facts = {"format": _FORMAT, "model": packed.model, "data": packed.data, "epoch": packed.epoch}
    content = save(tensors, {_KEY: json.dumps(facts)})
    with atomic_write(path) as file:
        file.write(content)


def read_packed(path: Path, option: str) -> Packed:
    """Reads the file; nothing in it can run code.

    Args:
        path: the file.
        option: how the user named it, for messages.

    Raises:
        UserError: when it is missing, damaged, of something else, or of another version of this project.
    """
    check_readable(path, option)
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, ValueError):
        raise UserError(f"{option} {path} is no safetensors file, or is damaged or cut short.") from None
    if not isinstance(facts, dict):
        raise UserError(
            f"{option} {path} holds weights, but does not say of what: start training from it with --model.weights."
        )
    if facts.get("format") != _FORMAT:
        raise UserError(
            f"{option} {path} is of another version of this project (its format is {facts.get('format')}, this "
            f"version reads {_FORMAT}): install the version that wrote it, or export its checkpoint again."
        )
    seen = tensors.pop(SEEN, None)
    model, data, epoch = facts.get("model"), facts.get("data"), facts.get("epoch")
    if not (_of_this_version(model, data) and isinstance(epoch, int | None) and _is_list_of_digests(seen)):
        raise UserError(f"{option} {path} does not say of itself what it should: it is damaged, or was not exported.")
    state = {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
    assert isinstance(model, dict) and isinstance(data, dict) and seen is not None
    return Packed(model, data, epoch, state, seen.numpy())


def seen_by(weights: str) -> NDArray[np.int64]:
    """What a file for ``--model.weights`` has seen; nothing where it does not say.

    Raises:
        UserError: as ``read_packed``.
    """
    path = user_path(weights)
    if path.suffix != PACKED_SUFFIX or not path.is_file() or not _metadata(path):
        return np.empty(0, np.int64)
    return read_packed(path, "--model.weights").seen


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def _kinds(model: Any, data: Any) -> list[tuple[Any, dict[str, tuple[type, ...]]]]:
    return [(model, OF_MODEL), (data, _OF_DATA)]


def _of_this_version(model: Any, data: Any) -> bool:
    """Whether both have what they should and no more, each of its kind."""
    return all(
        isinstance(facts, dict) and all(name in kinds and type(facts[name]) in kinds[name] for name in facts)
        for facts, kinds in _kinds(model, data)
    ) and {"backbone", "tasks", "age_loss"} <= set(model)


def _is_list_of_digests(seen: Tensor | None) -> bool:
    return seen is not None and seen.ndim == 1 and seen.dtype == torch.int64
