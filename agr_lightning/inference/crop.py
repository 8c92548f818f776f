"""Photos -> crops of their faces like UTKFace's, for training; and whether images are such crops."""

import contextlib
import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from agr_lightning.data.index import Index
from agr_lightning.files import atomic_write, usable_cpus, user_path
from agr_lightning.images import ImageError, decode_face, read_bytes, resize
from agr_lightning.inference.annotate import cut_name
from agr_lightning.inference.centerface import find_at_size, open_network
from agr_lightning.inference.faces import Pixels, shrink
from agr_lightning.inference.inputs import find_photos
from agr_lightning.inference.parts import Row
from agr_lightning.inference.photos import Photo, PhotoOptions, PhotoReader
from agr_lightning.inference.predict import Output, rows_of
from agr_lightning.inference.predictor import Answer
from agr_lightning.messages import PROGRAM, UserError

_log = logging.getLogger(__name__)

COLUMNS = ("file", "crop", "status", "x", "y", "width", "height", "face_probability", "faces", "seconds", "reason")

# What is not written as JPEG, so that its name stays: decoders look at the content.
_FORMATS = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}

# Crops in a batch. A crop has at most so many times the pixels of its face, by side: more would show nothing more.
_BATCH, _ENLARGED = 16, 2

# Of the best, such a share is nearly as good.
_NEARLY = 2 / 3

# So many images of a data set are looked at, and such a share of misfits is worth a line. A face is searched at this
# size, pixels, longer side: all of 500 UTKFace crops had one there, also grey, dark or blurred, 99 % with 0.8 of their
# side or more, and all within 0.11 of their middle. Images without one are misfits where they are larger than the last.
_LOOKED_AT, _WORTH_A_LINE = 32, 0.25
_SIZE, _LONGER, _LEAST_SIDE, _MOST_SHIFT, _LARGE = 96, 1.25, 0.72, 0.15, 256


def crop(photos: str, out: str, size: int = 200, largest: int | None = 1, resume: bool = False, **faces: Any) -> None:
    """Crops the faces in photos like UTKFace's, for training: files of the same names, and crops.csv.

    Args:
        photos: a photo or video, a folder (searched recursively), a glob in quotes, or a .txt list.
        out: a new or empty folder for crops, outside of that of the photos.
        size: side of a crop, pixels; a crop of a smaller face has at most twice the face's side.
        largest: how many faces of a photo: the nearest to the middle of those two thirds as sure and as large as the
            best, then the largest others; null for all. Several of a photo have names of their own.
        resume: go on with the same job where it was stopped.
        **faces: which faces are wanted, as in ``PhotoOptions``.
    """
    options = PhotoOptions(largest=largest, **faces)
    if size < 1:
        raise UserError(f"--size {size} must be 1 or more.")
    paths, named, folder = find_photos(photos, "PHOTOS"), user_path(photos), user_path(out)
    if named.is_dir() and folder.resolve().is_relative_to(named.resolve()):
        raise UserError(f"OUT {out} lies in PHOTOS {photos}, where crops would be photos: name a folder outside of it.")
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "crops.csv"
    if any(folder.iterdir()) and not table.with_suffix(".part0").exists():
        raise UserError(f"OUT {out} is not empty: name a new folder.")
    reader = _Reader(replace(options, largest=None), size)
    _log.info(f"Faces        {reader.description}")
    output = Output(paths, "csv", None, str(table), resume)
    output.name, output.columns = "Crops", COLUMNS
    output.open(None, reader.description, size=size, **asdict(options))
    root = os.path.commonpath(map(os.path.abspath, [named] if named.is_dir() else [path.parent for path in paths]))

    def write(photos: Sequence[Photo]) -> None:
        rows = [row for photo in photos for row in _rows(photo, root, largest)]
        output.add(rows)  # first, so that a resumed job makes all crops again that may be half there
        crops = chain.from_iterable(photo.crops[:largest] for photo in photos)
        for row, pixels in zip((row for row in rows if "crop" in row), crops, strict=True):
            path = folder / str(row["crop"])
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(resize(pixels, min(size, _ENLARGED * int(row["width"]))))
            with atomic_write(path, lasting=False) as file:
                image.save(file, _FORMATS.get(path.suffix.lower(), "JPEG"), quality=95)

    counts = output.fill(reader, _BATCH, write)
    if largest is not None:
        found = pd.read_csv(table, usecols=["file", "faces"], encoding_errors="replace").drop_duplicates("file")
        if several := (found["faces"] > largest).sum():
            _log.info(f"Left out     all but {largest} of the faces in {several:,} inputs (column faces)")
    if counts["ok"]:
        _log.info(f"Next         {PROGRAM} fit --data.root {shlex.quote(str(folder))}")


class _Reader(PhotoReader):
    """Reads photos with their faces in the order of ``crop``."""

    def look(self, pixels: Pixels, path: Path = Path(), seconds: float | None = None, factor: int = 1) -> Photo:
        photo = super().look(pixels, path, seconds, factor)
        if not photo.boxes:
            return photo
        faces = np.array([(box.x, box.y, box.width, box.face_probability or 1) for box in photo.boxes])
        middles, (width, sure) = faces[:, :2] + faces[:, 2:3] / 2, faces[:, 2:].T
        nearly = sure >= _NEARLY * sure.max()
        nearly &= width >= _NEARLY * width[nearly].max()
        shifts = np.hypot(*(middles - factor * np.array(pixels.shape[1::-1]) / 2).T)
        first = np.where(nearly, shifts, np.inf).argmin()
        order = sorted(range(len(faces)), key=lambda face: face != first)
        return photo._replace(crops=photo.crops[order], boxes=[photo.boxes[face] for face in order])


def _rows(photo: Photo, root: str, largest: int | None) -> Iterator[Row]:
    """The rows of a photo below a folder: one for each crop, or one that says why there is none."""
    boxes, below = photo.boxes[:largest], Path(os.path.relpath(photo.path, root))
    frame = "" if photo.seconds is None else f".{photo.seconds:09.3f}s"
    for face, row in enumerate(rows_of(photo._replace(boxes=boxes), [Answer()] * len(boxes))):
        row["file"] = below.as_posix()
        if photo.problem is None:
            row["faces"] = len(photo.boxes)
        if boxes:
            own = f"{frame}.face{face}" if len(boxes) > 1 else frame
            row["crop"] = below.with_name(cut_name(below.name, f"{own}.jpg") if own else below.name).as_posix()
        yield row


def not_crops(index: Index) -> str | None:
    """A line that says so where images of a data set are no face crops like UTKFace's, by some of them; else None."""
    places = np.unique(np.linspace(0, len(index.samples) - 1, _LOOKED_AT, dtype=int))
    files = [index.folder / file for file in index.samples["file"].iloc[places]]
    boxes = index.samples["box"].iloc[places]
    open_network()  # once, before threads do
    with ThreadPoolExecutor(usable_cpus()) as pool:
        kinds = Counter(pool.map(_misfit, files, boxes))
    if kinds.total() - kinds[""] < _WORTH_A_LINE * len(files):
        return None
    return (
        f"{index.root}: {kinds.total() - kinds['']} of {len(files)} images are no face crops like UTKFace's (of other "
        f"shapes: {kinds['shape']}, without a face that fills them: {kinds['face']}); crop them first: "
        f"{PROGRAM} crop {shlex.quote(str(index.folder))} OUT"
    )


def _misfit(path: Path, box: NDArray[np.float64]) -> str:
    """Why an image is no crop, its "shape" or the "face" in it; empty where it may be one."""
    with contextlib.suppress(ImageError):
        pixels = decode_face(read_bytes(path), box, draft=2 * _LARGE)
        sides = np.array(pixels.shape[1::-1])
        if sides.max() > _LONGER * sides.min():
            return "shape"
        faces = find_at_size(shrink(pixels, min(1.0, _SIZE / sides.max())), pixels)
        face = max(faces, key=lambda face: face.probability, default=None)
        if face is None or face.probability < PhotoOptions.min_confidence:
            return "face" if sides.max() > _LARGE else ""
        shift = np.abs(face.middle / sides - 0.5).max()
        return "face" if face.side < _LEAST_SIDE * sides.min() or shift > _MOST_SHIFT else ""
    return ""
