"""Decoded images in one array on disk, made once for a folder and an image size."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from agr_lightning.data.images import ImageError, read_rgb, resize
from agr_lightning.data.index import Index
from agr_lightning.files import atomic_write, cache_folder
from agr_lightning.messages import UserError

# Part of every cache file's name: raise it when the pixels of the same files would differ.
_CACHE_VERSION = 1

# Images that are decoded before they are written, so that threads do not run ahead of a slow disk.
_PORTION = 1024


def cached_images(index: Index, size: int, cache_dir: str | None = None) -> Path:
    """The .npy file with the images of an index, decoded and resized: uint8 ``(samples, size, size, 3)``, RGB.

    The file is made in the first call and found in later ones, by the images' paths, sizes and times of change. It
    appears whole or not at all, so that a killed process leaves nothing to trip over. Its rows are the ``row`` of the
    index's samples.

    Raises:
        UserError: when an image has become unreadable meanwhile.
    """
    key = hashlib.sha256(f"{_CACHE_VERSION} {size}".encode())
    for file, *stamp in index.samples[["file", "size", "mtime_ns"]].itertuples(index=False):
        key.update(f"{index.folder}/{file}|{tuple(stamp)}\n".encode("utf-8", "surrogateescape"))
    path = cache_folder(cache_dir) / f"images-{size}-{key.hexdigest()[:16]}.npy"
    if path.exists():
        return path
    files = [f"{index.folder}/{file}" for file in index.samples["file"]]
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), size, size, 3)}
    bar = tqdm(desc="Decoding images", total=len(files), unit="image", delay=2, leave=False, disable=None)
    with atomic_write(path) as output, ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        np.lib.format.write_array_header_1_0(output, header)
        for start in range(0, len(files), _PORTION):
            for image in pool.map(lambda file: _load(file, size), files[start : start + _PORTION]):
                output.write(image.tobytes())
                bar.update()
    return path


def read_rows(path: Path, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """These rows of a cache file; mapped anew each time, since what stays mapped counts as this process's memory."""
    return np.asarray(np.load(path, mmap_mode="r")[rows])


def _load(file: str, size: int) -> NDArray[np.uint8]:
    try:
        return resize(read_rgb(file), size)
    except ImageError as error:
        raise UserError(f"{file} has changed since it was checked: {error}. Run the command again.") from None
