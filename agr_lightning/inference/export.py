"""A checkpoint -> one file that travels."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agr_lightning.checkpoints import Checkpoint, find_checkpoint, read_checkpoint, splits_of
from agr_lightning.errors import UserError
from agr_lightning.files import name_digests, user_path
from agr_lightning.models.packed import pack, seen_by, write_packed
from agr_lightning.run_files import PACKED_SUFFIX

# Training learns from the first; the second chooses the weights and calibrates them.
_SEEN_LISTS = ("train.txt", "val.txt")


def export(named: str, output: str) -> str:
    """Writes a checkpoint's network into one file.

    Args:
        named: checkpoint file, run folder, ``best`` or ``last``.
        output: a .safetensors file: weights in 16 bits, which load without running code, and what they are of.

    Returns:
        A sentence on what was written.

    Raises:
        UserError: when the checkpoint cannot be read or found, its run's split lists are missing, or for another
            kind of output.
    """
    path = user_path(output)
    if path.suffix != PACKED_SUFFIX:
        raise UserError(f"--output {output} must end in {PACKED_SUFFIX}.")
    if not path.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {path.parent}.")
    checkpoint = read_checkpoint(find_checkpoint(named, Path()))
    if checkpoint.exported:
        raise UserError(f"--ckpt_path {named} is an exported file already; name a checkpoint.")
    packed = pack(checkpoint.model, checkpoint.data, checkpoint.epoch, checkpoint.state, _seen(checkpoint))
    write_packed(path, packed)
    size, known = path.stat().st_size / 1e6, len(packed.seen)
    return f"{path}: {size:.1f} MB, {checkpoint.model['backbone']}, which has seen {known:,} images"


def _seen(checkpoint: Checkpoint) -> NDArray[np.int64]:
    """What the weights have seen: the images of their run, and what the weights that it started from had seen."""
    lists = splits_of(checkpoint.path)
    if lists is None or not all((lists / name).is_file() for name in _SEEN_LISTS):
        raise UserError(
            f"--ckpt_path {checkpoint.path} lies in no run folder with splits/: without them nobody could tell which "
            "images it may not be tested on. Leave the checkpoint in the folder of its run."
        )
    texts = ((lists / name).read_text("utf-8", "surrogateescape") for name in _SEEN_LISTS)
    own = name_digests(line for text in texts for line in text.splitlines())
    start = checkpoint.model.get("weights")
    if start is None:
        return own
    if not user_path(str(start)).is_file():
        raise UserError(
            f"--ckpt_path {checkpoint.path} started from {start}, which is gone: it says what those have seen."
        )
    return np.concatenate([own, seen_by(str(start))])
