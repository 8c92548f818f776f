"""A trained network in one safetensors file: its weights in 16 bits, what they are of, and whom they have seen."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from agr_lightning.errors import UserError
from agr_lightning.files import Json, atomic_write, name_digests

PACKED_SUFFIX = ".safetensors"

# Another layout of the file gets another number.
_FORMAT = "1"
_KEY = "agr_lightning"

# What of the data module's arguments is about the network, and not about somebody's folders.
_OF_DATA = ("image_size", "grayscale", "age_min", "age_max")

# The tensor that is no weight.
SEEN = "seen"


@dataclass(frozen=True)
class Packed:
    """A trained network.

    Attributes:
        model: the arguments of ``AGRModule`` that it was trained with.
        data: those of ``UTKFaceDataModule`` that are about the network.
        epoch: of which the weights are, from 0; None where that is not known.
        state: of its ``AGRNetwork``, calibration included; weights rounded to 16 bits.
        seen: digests of the names of the images that it was trained, chosen or calibrated by, int64 ``(n,)``, sorted.
    """

    model: dict[str, Json]
    data: dict[str, Json]
    epoch: int | None
    state: dict[str, Tensor]
    seen: NDArray[np.int64]


def pack(
    model: dict[str, Json], data: dict[str, Json], epoch: int | None, state: dict[str, Tensor], seen: Iterable[str]
) -> Packed:
    """What ``write_packed`` writes.

    Args:
        model: see ``Packed``.
        data: all arguments of ``UTKFaceDataModule``.
        epoch: see ``Packed``.
        state: of an ``AGRNetwork``, 32 bits.
        seen: names of the images that it was trained, chosen or calibrated by.
    """
    # Matrices alone: biases, statistics and calibration are few, and not all of them fit 16 bits.
    rounded = {name: value.half().float() if value.ndim > 1 else value for name, value in state.items()}
    kept = {name: value for name, value in data.items() if name in _OF_DATA}
    # Where training started is a file on somebody's machine.
    learnt = {name: value for name, value in model.items() if name != "weights"}
    return Packed(learnt, kept, epoch, rounded, np.unique(name_digests(seen)))


def write_packed(path: Path, packed: Packed) -> None:
    """Writes the file, whole or not at all."""
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
    if not path.is_file():
        raise UserError(f"{option} {path} does not exist.")
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
    seen = tensors.pop(SEEN).numpy()
    state = {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
    return Packed(facts["model"], facts["data"], facts["epoch"], state, seen)
