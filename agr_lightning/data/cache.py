"""Decoded images of a data set in one file: each is decoded when it is first needed, and checked when it is read."""

import contextlib
import os
import zlib
from typing import IO

import numpy as np
from numpy.typing import NDArray

from agr_lightning.data.index import Index
from agr_lightning.files import in_threads
from agr_lightning.images import ImageError, decode_face, read_bytes, resize
from agr_lightning.messages import UserError

# Part of what an image is known by: raise it when the pixels of the same file would differ.
_CACHE_VERSION = 2

# What the file says of each image, before the pixels of all: of which source they are, and their checksum.
_TAG = np.dtype([("source", "<u4"), ("checksum", "<u4")])


class ImageCache:
    """The images of an index, resized: RGB, uint8 ``(size, size, 3)``, by the ``row`` of its samples.

    There is a file for each index and size, beside the index's own. An image that has changed, or is damaged in that
    file, is decoded again into its place. Several processes may share the file.

    Args:
        index: of the images.
        size: side of the images, pixels.
    """

    def __init__(self, index: Index, size: int) -> None:
        self._folder, self._scan, self._size, self._bytes = index.folder, index.scan, size, 3 * size**2
        self._files = index.samples["file"].to_numpy(object)
        self._boxes = np.array([*index.samples["box"]])
        texts = (f"{_CACHE_VERSION} {size} {digest}".encode() for digest in index.samples["digest"])
        self._sources = np.array([max(1, zlib.crc32(text)) for text in texts], np.uint32)  # 0 stands for none
        self._path = index.scan.with_name(f"images-{size}-{index.key}.bin")
        self._tags = np.zeros(len(self._files), _TAG)
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.readinto(self._tags.data)

    def fill(self, rows: NDArray[np.int64]) -> None:
        """Decodes those of some images that the file lacks; raises UserError where one is an image no longer."""
        missing = rows[self._tags["source"][rows] != self._sources[rows]]
        if not len(missing):
            return
        images = in_threads(self._decode, missing.tolist(), "Decoding images")
        with self._opened() as file:
            for row, image in zip(missing.tolist(), images, strict=True):
                self._write(file, row, image)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Some images, ``(rows, size, size, 3)``; read, since what is mapped counts as this process's memory."""
        images = np.empty((len(rows), self._size, self._size, 3), np.uint8)
        with self._path.open("rb", buffering=0) as file:
            for row, image in zip(rows.tolist(), images, strict=True):
                file.seek(self._place(row))
                if file.readinto(image.data) < self._bytes or zlib.crc32(image.data) != self._tags["checksum"][row]:
                    image[:] = self._decode(row)
                    with contextlib.suppress(OSError), self._opened() as writable:
                        self._write(writable, row, image)
        return images

    def _opened(self) -> IO[bytes]:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        return os.fdopen(descriptor, "r+b", buffering=0)

    def _place(self, row: int) -> int:
        return self._tags.nbytes + row * self._bytes

    def _write(self, file: IO[bytes], row: int, image: NDArray[np.uint8]) -> None:
        """Writes the pixels, and then what is said of them."""
        self._tags[row] = self._sources[row], zlib.crc32(image.data)
        for place, content in ((self._place(row), image), (row * _TAG.itemsize, self._tags[row])):
            file.seek(place)
            try:
                file.write(content.tobytes())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _decode(self, row: int) -> NDArray[np.uint8]:
        file = f"{self._folder}/{self._files[row]}"
        try:
            return resize(decode_face(read_bytes(file), self._boxes[row]), self._size)
        except ImageError as error:
            self._scan.unlink(missing_ok=True)  # so that the next command looks at it again
            raise UserError(f"{file} has changed since it was checked: {error}. Run the command again.") from None
