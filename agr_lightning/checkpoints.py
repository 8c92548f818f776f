"""Which checkpoint the user means, and what it says of itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agr_lightning.errors import UserError
from agr_lightning.files import Json, name_digests, named_files, user_path
from agr_lightning.models.network import AGRNetwork, network_options
from agr_lightning.models.packed import OF_MODEL, read_packed, seen_by
from agr_lightning.models.weights import NETWORK_PREFIX, read_torch_file
from agr_lightning.run_files import (
    CHECKPOINTS_FOLDER,
    IN_THE_BOX,
    ONNX_SUFFIX,
    PACKED_SUFFIX,
    RUNS_FOLDER,
    SMALL,
    SPLITS_FOLDER,
    number_of,
    run_of,
)

BEST, LAST = "best", "last"

# Training learns from the first; the second chooses the weights and calibrates them.
_SEEN_LISTS = ("train.txt", "val.txt")

# The networks that come with this project; that without a name is used where no checkpoint is named.
_WEIGHTS = Path(__file__).parent / "weights"
BOX = {None: _WEIGHTS / f"agr{PACKED_SUFFIX}", SMALL: _WEIGHTS / f"agr_small{PACKED_SUFFIX}"}


@dataclass(frozen=True)
class Checkpoint:
    """A trained network in a file.

    Attributes:
        path: the file.
        model: the arguments of AGRModule; of an exported file, those that are about the network.
        data: the arguments of UTKFaceDataModule, likewise.
        epoch: of which the weights are, from 0; None where that is not known.
        state: of its ``AGRNetwork``.
        seen: of an exported file, whom it has seen, see ``Packed``; None for a checkpoint of training.
    """

    path: Path
    model: dict[str, Json]
    data: dict[str, Json]
    epoch: int | None
    state: dict[str, Tensor]
    seen: NDArray[np.int64] | None = None

    @property
    def in_the_box(self) -> bool:
        """Whether it comes with this project."""
        return self.path in BOX.values()

    @property
    def named(self) -> str | None:
        """How ``--ckpt_path`` names it."""
        return next((name for name, path in BOX.items() if path == self.path), str(self.path))

    @property
    def of_cards(self) -> bool:
        """Whether it was trained on drawn cards."""
        return bool(self.data.get("synthetic"))

    @property
    def called(self) -> str:
        """How to name it in a message."""
        return IN_THE_BOX.get(self.named, f"--ckpt_path {self.path}")

    @property
    def exported(self) -> bool:
        """Whether it is a network alone, and no training that could go on."""
        return self.seen is not None

    def network(self) -> AGRNetwork:
        """The network, to be evaluated.

        Raises:
            UserError: when the weights are not those of the network that the file describes.
        """
        about = {name: self.model[name] for name in OF_MODEL if name in self.model}
        about |= {name: self.data[name] for name in ("image_size", "grayscale") if name in self.data}
        network = AGRNetwork(**network_options(**about))  # type: ignore[arg-type]
        try:
            network.load_state_dict(self.state)
        except RuntimeError as error:
            raise UserError(
                f"{self.called} does not fit the network that it describes, or is of another version of this project: "
                f"{' '.join(str(error).split()[5:])[:200]}"
            ) from None
        return network.eval().requires_grad_(False)


def find_checkpoint(named: str | None, root: Path) -> Path:
    """The checkpoint file that ``named`` means.

    Args:
        named: a file; a run folder, for its best checkpoint; ``best`` or ``last``, for that of the highest-numbered
            run that has one; ``small`` for the small network that comes with this project, None for the other.
        root: the folder that holds ``lightning_logs``.

    Raises:
        UserError: when there is none.
    """
    if named is None or named in BOX:
        return _weights_in_the_box(named)
    if named in (BEST, LAST):
        runs = (root / RUNS_FOLDER).glob(f"version_*/{CHECKPOINTS_FOLDER}/{named}.ckpt")
        numbered = {n: run for run in runs if (n := number_of(run_of(run))) is not None}
        if not numbered:
            raise UserError(
                f"--ckpt_path {named}: no run under {root / RUNS_FOLDER} has a {named}.ckpt. "
                "Train one with `fit`, or name a file or run folder."
            )
        return numbered[max(numbered)]
    path = user_path(named)
    if path.is_dir():
        best = path / CHECKPOINTS_FOLDER / f"{BEST}.ckpt"
        if not best.is_file():
            raise UserError(f"--ckpt_path {named} is a folder without {CHECKPOINTS_FOLDER}/{BEST}.ckpt.")
        return best
    if not path.is_file():
        raise UserError(
            f"--ckpt_path {named} does not exist; name a checkpoint file, a run folder, '{BEST}', '{LAST}' or "
            f"'{SMALL}'."
        )
    return path


def _weights_in_the_box(named: str | None) -> Path:
    path = BOX[named]
    if not path.is_file():
        raise UserError(
            f"this installation lacks trained weights ({path} is missing): install all of the project, or give "
            f"--ckpt_path FILE, a run folder, '{BEST}' or '{LAST}'."
        )
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint or an exported file, without running any code that is in it.

    Raises:
        UserError: when it is damaged, or not a checkpoint of this project.
    """
    if path.suffix.lower() == ONNX_SUFFIX:
        raise UserError(
            f"--ckpt_path {path}: an ONNX file is for predict alone, without --config, --model and --trainer options."
        )
    if path.suffix == PACKED_SUFFIX:
        packed = read_packed(path, "--ckpt_path")
        return Checkpoint(path, packed.model, packed.data, packed.epoch, packed.state, packed.seen)
    content = read_torch_file(path, "--ckpt_path")
    state, model = content.get("state_dict"), content.get("hyper_parameters")
    if not isinstance(state, dict) or not isinstance(model, dict) or "backbone" not in model:
        raise UserError(f"--ckpt_path {path} is not a checkpoint of this project; weights alone go to --model.weights.")
    network = {name.removeprefix(NETWORK_PREFIX): v for name, v in state.items() if name.startswith(NETWORK_PREFIX)}
    if not network:
        raise UserError(f"--ckpt_path {path} holds no network.")
    data, epoch = content.get("datamodule_hyper_parameters", {}), content.get("epoch")
    number = epoch if isinstance(epoch, int) else None
    return Checkpoint(path, cast(dict[str, Json], model), cast(dict[str, Json], data), number, network)


def seen_images(checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Digests of the names of the images that a network has learnt from, or was chosen or calibrated by.

    Those of its run, and what the weights that it started from, and its teachers, had seen.

    Raises:
        UserError: when the checkpoint does not lie in the folder of its run, or what it came from is gone.
    """
    if checkpoint.seen is not None:
        return checkpoint.seen
    lists = splits_of(checkpoint.path)
    if lists is None or not all((lists / name).is_file() for name in _SEEN_LISTS):
        raise UserError(
            f"--ckpt_path {checkpoint.path} lies in no run folder with splits/: without them nobody could tell which "
            "images it may not be tested on. Leave the checkpoint in the folder of its run."
        )
    texts = ((lists / name).read_text("utf-8", "surrogateescape") for name in _SEEN_LISTS)
    seen = [name_digests(line for text in texts for line in text.splitlines())]
    sources = named_files(cast(list[str] | str | None, checkpoint.model.get("weights")))
    teachers = cast(list[str], checkpoint.model.get("teachers", []))
    for source in (*sources, *teachers):
        if not user_path(source).exists():
            raise UserError(
                f"--ckpt_path {checkpoint.path} has learnt from {source}, which is gone: it says whom that has seen."
            )
    seen += [seen_by_start(source) for source in sources]
    seen += [read_teacher(source)[1] for source in teachers]
    return np.concatenate(seen)


def seen_by_start(weights: str) -> NDArray[np.int64]:
    """As ``seen_images``, of a file for ``--model.weights``; nothing where it does not say."""
    path = user_path(weights)
    if path.suffix == PACKED_SUFFIX:
        return seen_by(weights)
    if not path.is_file() or splits_of(path) is None:
        return np.empty(0, np.int64)
    try:
        return seen_images(read_checkpoint(path))
    except UserError:  # somebody else's weights, in a folder like ours
        return np.empty(0, np.int64)


def read_teacher(named: str) -> tuple[Checkpoint, NDArray[np.int64]]:
    """A network that another is to learn from, and its ``seen_images``.

    Args:
        named: an exported file, a checkpoint, or a run folder.

    Raises:
        UserError: when it cannot be read, or does not say what it has seen.
    """
    if named in (BEST, LAST, SMALL):
        raise UserError(f"--model.teachers {named}: name a file or a run folder, which stays the same.")
    try:
        checkpoint = read_checkpoint(find_checkpoint(named, Path()))
        return checkpoint, seen_images(checkpoint)
    except UserError as error:
        raise UserError(str(error).replace("--ckpt_path", "--model.teachers")) from None


def splits_of(checkpoint: Path) -> Path | None:
    """The split lists of the run that a checkpoint lies in; None when it lies elsewhere."""
    lists = run_of(checkpoint) / SPLITS_FOLDER
    return lists if (lists / "test.txt").is_file() else None
