"""Files -> photos and frames of videos, with the faces in them cropped."""

import contextlib
import io
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agr_lightning.files import usable_cpus
from agr_lightning.images import MAX_PIXELS, ImageError, decode_photo, open_file, read_bytes, resize
from agr_lightning.inference.centerface import find_faces, open_network
from agr_lightning.inference.faces import Box, shrink
from agr_lightning.inference.inputs import VIDEO_EXTENSIONS
from agr_lightning.inference.predictor import Answer
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

# A damaged frame looks like the end of a video: so many are passed over, without what FFmpeg says of each.
_TRIES = 100
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

# Longest side, in pixels, of the picture that is kept for annotation; so many are kept at once, of up to 12 MB each.
_PICTURE_SIZE, _PICTURES = 2048, 8


@dataclass(frozen=True)
class PhotoOptions:
    """Which faces are wanted; values that cannot work raise UserError.

    Args:
        faces: what finds them: centerface; none takes each photo as one face crop; auto is centerface, or none where
            the network was trained on drawn cards.
        largest: how many of a photo, the largest first; null for all.
        min_size: side of the smallest face, pixels; null for 30 in photos with such small faces, and for a 28th of the
            longer side in others.
        min_confidence: least face_probability of a face, 0 to 1.
        every: seconds between the frames of a video.
    """

    faces: Literal["auto", "centerface", "none"] = "auto"
    largest: int | None = None
    min_size: float | None = None
    min_confidence: float = 0.4
    every: float = 1.0

    def __post_init__(self) -> None:
        if self.faces not in (names := ("auto", "centerface", "none")):
            raise UserError(f"--faces {self.faces} must be one of {', '.join(names)}.")
        for name, value in (("largest", self.largest), ("min_size", self.min_size)):
            if value is not None and not 1 <= value < math.inf:
                raise UserError(f"--{name} {value} must be 1 or more.")
        if not 0 <= self.min_confidence <= 1:
            raise UserError(f"--min_confidence {self.min_confidence} must be from 0 to 1.")
        if not 0 < self.every < math.inf:
            raise UserError(f"--every {self.every} must be above 0 seconds.")


class Photo(NamedTuple):
    """A photo, or a frame of a video, as it was read.

    Attributes:
        path: of the file.
        crops: its faces, the largest first, RGB, uint8 ``(faces, size, size, 3)``.
        boxes: of the faces.
        seconds: where in the video the frame is; None for a photo.
        length: of the video, as its file says, seconds; None for a photo.
        problem: why the file could not be used; None where it could.
        picture: RGB, uint8, at most 2048 pixels long, where it is to be annotated.
        scale: how many pixels of the picture are one of the photo, 1 or less.
        index: of the file among all inputs.
    """

    path: Path
    crops: NDArray[np.uint8]
    boxes: Sequence[Box] = ()
    seconds: float | None = None
    problem: str | None = None
    picture: NDArray[np.uint8] | None = None
    scale: float = 1.0
    index: int = 0  # type: ignore[assignment]  # in place of tuple.index
    length: float | None = None

    @property
    def place(self) -> str:
        """Where in a video the frame is, for people; empty for a photo."""
        whole = f" of {self.length:.0f}" if self.length else ""
        return "" if self.seconds is None else f"{self.path.name}: {self.seconds:.0f}{whole} s"

    def answers(self, found: Iterable[Answer]) -> list[Answer]:
        """The next of some answers, one for each face, with how sure the detector was of it."""
        return [replace(answer, face_probability=box.face_probability) for box, answer in zip(self.boxes, found)]  # noqa: B905


class PhotoReader:
    """Reads files; may be used from several threads at once.

    Crops are ``size`` pixels wide. Pictures are kept where they are to be annotated.

    Attributes:
        finds_faces: whether faces are looked for; else each photo is taken as one.
    """

    def __init__(self, options: PhotoOptions, size: int, keep_picture: bool = False, of_cards: bool = False) -> None:
        self._options, self._size, self.keep_picture = options, size, keep_picture
        self._free, self._freed = MAX_PIXELS, threading.Condition()
        self.finds_faces = options.faces != "none" and not (of_cards and options.faces == "auto")
        if self.finds_faces:
            open_network()  # once, before threads do

    @property
    def description(self) -> str:
        """How faces are found, for people."""
        return "found by centerface" if self.finds_faces else "each photo is taken as one"

    def read(self, path: Path, content: bytes | None = None) -> Iterator[Photo]:
        """The photo or the frames in a file, or in its ``content``; what cannot be used is a photo with a problem."""
        try:
            if content is None and path.suffix.lower() in VIDEO_EXTENSIONS:
                yield from self._frames(path)
            else:
                with self._room_for(path, content):
                    pixels, factor = decode_photo(read_bytes(path) if content is None else content)
                    photo = self.look(pixels, path, factor=factor)
                yield photo
            return
        except ImageError as error:
            problem = str(error)
        except Exception as error:  # decoders and detectors raise anything; the other inputs go on
            _log.warning(f"{path}: {error!r}")
            problem = f"failed ({' '.join(str(error).split())[:80] or type(error).__name__})"
        yield Photo(path, np.zeros((0, self._size, self._size, 3), np.uint8), problem=problem)

    @contextlib.contextmanager
    def _room_for(self, path: Path, content: bytes | None) -> Iterator[None]:
        """Waits until threads, this one among them, decode no more pixels together than one photo may have."""
        pixels = MAX_PIXELS
        with (
            contextlib.suppress(Exception),  # where its first bytes do not say
            Image.open(open_file(path) if content is None else io.BytesIO(content)) as image,
        ):
            pixels = min(pixels, image.width * image.height)
        with self._freed:
            self._freed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._freed:
                self._free += pixels
                self._freed.notify_all()

    def look(
        self, pixels: NDArray[np.uint8], path: Path = Path(), seconds: float | None = None, factor: int = 1
    ) -> Photo:
        """The faces of a decoded photo: RGB, uint8 ``(height, width, 3)``, whose file is ``factor`` times as large."""
        height, width = pixels.shape[:2]
        if not self.finds_faces:
            crops, boxes = resize(pixels, self._size)[None], [Box(0, 0, width, height)]
        else:
            wanted = self._options
            smallest = None if wanted.min_size is None else wanted.min_size / factor
            faces = find_faces(pixels, smallest, wanted.largest, wanted.min_confidence)
            crops = np.array([face.crop(pixels, self._size) for face in faces], np.uint8)
            crops, boxes = crops.reshape(-1, self._size, self._size, 3), [face.box for face in faces]
        scale = min(1.0, _PICTURE_SIZE / max(height, width))
        picture = shrink(pixels, scale) if self.keep_picture else None
        boxes = [Box(factor * x, factor * y, factor * w, factor * h, sure) for x, y, w, h, sure in boxes]
        return Photo(path, crops, boxes, seconds, picture=picture, scale=scale / factor)

    def _frames(self, path: Path) -> Iterator[Photo]:
        open_file(path).close()
        name = str(path.absolute())
        if name.encode(errors="ignore").decode() != name:
            raise ImageError("a video's name must be UTF-8")  # OpenCV crashes
        video = cv2.VideoCapture(name)
        # Where frames have no times they have a rate, or count as 1/25 s. A stream may not know its length.
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        length = max(0.0, video.get(cv2.CAP_PROP_FRAME_COUNT)) / rate
        wanted = seconds = 0.0
        while any(video.grab() for _ in range(_TRIES)):
            by_rate = max(0.0, video.get(cv2.CAP_PROP_POS_FRAMES) - 1) / rate
            seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000 or by_rate
            if seconds + 1e-6 >= wanted and (frame := video.retrieve()[1]) is not None:
                wanted = seconds + self._options.every
                rgb = np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
                yield self.look(rgb, path, round(seconds, 3))._replace(length=length)
        if not wanted:
            raise ImageError("no frame of it can be decoded")
        if length - seconds > 1 + 0.02 * length:  # sound may last a little longer
            raise ImageError(f"cut short: no frame after {seconds:.1f} of {length:.1f} seconds can be decoded")


def photo_batches(inputs: Sequence[tuple[int, Path]], reader: PhotoReader, batch_size: int) -> Iterator[list[Photo]]:
    """What is in files, each with its index among all inputs, in their order; some batches at most are in memory.

    A batch has ``batch_size`` faces, or more by its last photo, or fewer at the end or where many photos have none.
    """
    most = _PICTURES if reader.keep_picture else 2 * batch_size
    batch: list[Photo] = []
    for photo in _read_ahead(inputs, reader, min(most, batch_size)):
        batch.append(photo)
        if sum(len(each.boxes) for each in batch) >= batch_size or len(batch) >= most:
            yield batch
            batch = []
    if batch:
        yield batch


def _read_ahead(inputs: Sequence[tuple[int, Path]], reader: PhotoReader, ahead: int) -> Iterator[Photo]:
    """Reads photos in threads, some ahead of what is asked for; videos, which are long, when they are asked for."""

    def read(index: int, path: Path) -> Iterable[Photo]:
        photos = (photo._replace(index=index) for photo in reader.read(path))
        return photos if path.suffix.lower() in VIDEO_EXTENSIONS else list(photos)

    pool = ThreadPoolExecutor(usable_cpus())
    started = (pool.submit(read, *one) for one in inputs)
    reading = deque(islice(started, ahead))
    try:
        while reading:
            yield from reading.popleft().result()
            reading.extend(islice(started, 1))
    finally:
        pool.shutdown(cancel_futures=True)
