"""A checkpoint -> one file that travels."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agr_lightning.checkpoints import Checkpoint, find_checkpoint, read_checkpoint, seen_images
from agr_lightning.data.cards import draw_card
from agr_lightning.data.images import ImageError, read_rgb
from agr_lightning.data.photos import find_photos
from agr_lightning.files import user_path
from agr_lightning.labels import AGE_MAX, GENDERS, RACES
from agr_lightning.messages import UserError
from agr_lightning.models.packed import pack, write_packed
from agr_lightning.runs import ONNX_SUFFIX, PACKED_SUFFIX

# How many faces the answers of an ONNX file are compared by.
_FACES = 64


def export(named: str | None, output: str, images: str | None = None, half: bool = False) -> str:
    """Writes a checkpoint's network into one file.

    Args:
        named: checkpoint file, run folder, ``best`` or ``last``; None for the network that comes with this project.
        output: a .onnx file: all that is needed to use the network; or a .safetensors file: weights in 16 bits, which
            load without running code, what they are of, and whom they have seen.
        images: photo, folder or glob of faces to compare the answers of an ONNX file by; None for drawn cards.
        half: store the weights of an ONNX file in 16 bits.

    Returns:
        A sentence on what was written.

    Raises:
        UserError: when the checkpoint cannot be read, its run's split lists are missing, the ONNX file gives other
            answers, or for another kind of output.
    """
    path = user_path(output)
    if path.suffix not in (ONNX_SUFFIX, PACKED_SUFFIX):
        raise UserError(f"--output {output} must end in {ONNX_SUFFIX} or {PACKED_SUFFIX}.")
    if path.suffix == PACKED_SUFFIX and (images is not None or half):
        raise UserError(f"--images and --half are for {ONNX_SUFFIX} files: {PACKED_SUFFIX} holds what it is given.")
    if not path.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {path.parent}.")
    checkpoint = read_checkpoint(find_checkpoint(named, Path()))
    text = _write_packed(path, checkpoint) if path.suffix == PACKED_SUFFIX else ""
    if not text:
        from agr_lightning.inference.onnx_export import write_onnx

        text = write_onnx(path, checkpoint, _faces(images), half)
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB, {checkpoint.model['backbone']}, {text}"


def _write_packed(path: Path, checkpoint: Checkpoint) -> str:
    if checkpoint.exported:
        raise UserError(f"{checkpoint.called} is an exported file already; name a checkpoint.")
    packed = pack(checkpoint.model, checkpoint.data, checkpoint.epoch, checkpoint.state, seen_images(checkpoint))
    write_packed(path, packed)
    return f"which has seen {len(packed.seen):,} images"


def _faces(images: str | None) -> list[NDArray[np.uint8]]:
    """What to compare answers by: photos from all over the folder, or cards."""
    if images is None:
        random = np.random.default_rng(0)
        people = zip(
            *(random.integers(values, size=_FACES).tolist() for values in (AGE_MAX + 1, len(GENDERS), len(RACES))),
            strict=True,
        )
        return [draw_card(age, gender, race, random) for age, gender, race in people]
    photos = find_photos(images, "--images")
    try:
        return [read_rgb(path) for path in photos[:: -(-len(photos) // _FACES)]]
    except ImageError as error:
        raise UserError(f"--images {images}: one of the photos is {error}.") from None
