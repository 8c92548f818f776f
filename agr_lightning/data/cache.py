"""Decoded images in one memory-mapped array, made once for a folder and an image size."""

import hashlib
import mmap
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


def cached_images(index: Index, size: int, cache_dir: str | None = None) -> NDArray[np.uint8]:
    """The images of an index, decoded and resized, as an array that is read from disk when touched.

    The array is made in the first call and found in later ones, by the files' paths, sizes and times of
    change. It appears whole or not at all, so that a killed process leaves nothing to trip over.

    Args:
        index: whose images; the rows of the result are the ``row`` of its samples.
        size: side of the result, pixels.
        cache_dir: where derived files go; None for the user's cache folder.

    Returns:
        uint8 ``(samples, size, size, 3)``, RGB, read-only.

    Raises:
        UserError: when an image has become unreadable meanwhile.
    """
    key = hashlib.sha256(f"{_CACHE_VERSION} {size}".encode())
    for file, *stamp in index.samples[["file", "size", "mtime_ns"]].itertuples(index=False):
        key.update(f"{index.folder}/{file}|{tuple(stamp)}\n".encode("utf-8", "surrogateescape"))
    path = cache_folder(cache_dir) / f"images-{size}-{key.hexdigest()[:16]}.npy"
    if not path.exists():
        _build(index, size, path)
    images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return images


def read_rows(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """These rows, copied; what was read of a file does not stay in this process's memory.

    The system keeps it in its page cache, for as long as nothing else needs the room.
    """
    chosen = np.asarray(images[rows])
    if isinstance(images.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        images.base.madvise(mmap.MADV_DONTNEED)
    return chosen


def _build(index: Index, size: int, path: Path) -> None:
    files = [f"{index.folder}/{file}" for file in index.samples["file"]]
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), size, size, 3)}
    bar = tqdm(desc="Decoding images", total=len(files), unit="image", delay=2, leave=False, disable=None)
    with atomic_write(path) as output, ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        np.lib.format.write_array_header_1_0(output, header)
        for start in range(0, len(files), _PORTION):
            for image in pool.map(lambda file: _load(file, size), files[start : start + _PORTION]):
                output.write(image.tobytes())
                bar.update()


def _load(file: str, size: int) -> NDArray[np.uint8]:
    try:
        return resize(read_rgb(file), size)
    except ImageError as error:
        raise UserError(f"{file} has changed since it was checked: {error}. Run the command again.") from None
