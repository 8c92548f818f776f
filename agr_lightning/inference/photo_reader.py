"""An input file -> its photos, or the frames of a video, with the faces in them cropped."""

import contextlib
import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from agr_lightning.data.images import ImageError, open_file, open_image, pixels_of, read_bytes, resize
from agr_lightning.data.photos import VIDEO_EXTENSIONS
from agr_lightning.inference.faces import Finder, FinderName, build_finder, find_faces
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

# Longest side, in pixels, of the picture that is kept for annotation.
_SHOWN = 2048

# Photos of more pixels are read one at a time, however many threads there are: 100 megapixels take up to 1 GB.
_LARGE = 25_000_000
_FOR_LARGE = threading.Lock()


@dataclass(frozen=True)
class ReadPhoto:
    """A photo, or a frame of a video, as it was read.

    Attributes:
        path: of the file.
        crops: its faces, the largest first, RGB, uint8 ``(faces, size, size, 3)``.
        boxes: of the faces: left, top, width and height, pixels.
        seconds: where in the video the frame is; None for a photo.
        problem: why the file could not be used; None where it could.
        shown: the picture, RGB, uint8, at most 2048 pixels long, where it is to be annotated.
        shrunk: how many of its pixels are one of the photo's, 1 or less.
        place: of the file among all inputs.
    """

    path: Path
    crops: NDArray[np.uint8]
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    seconds: float | None = None
    problem: str | None = None
    shown: NDArray[np.uint8] | None = None
    shrunk: float = 1.0
    place: int = 0


@dataclass(frozen=True)
class ReadingOptions:
    """Which faces are wanted.

    Args:
        faces: what finds them; none takes each photo as one face crop.
        largest: how many of a photo, the largest first; None for all.
        min_size: side of the smallest face, pixels.
        every: seconds between the frames of a video.

    Raises:
        UserError: for values that cannot work.
    """

    faces: FinderName = "auto"
    largest: int | None = None
    min_size: float = 30
    every: float = 1.0

    def __post_init__(self) -> None:
        for name, value, least in (("largest", self.largest, 1), ("min_size", self.min_size, 1)):
            if value is not None and not least <= value < math.inf:
                raise UserError(f"--{name} {value} must be {least} or more.")
        if not 0 < self.every < math.inf:
            raise UserError(f"--every {self.every} must be above 0 seconds.")


class PhotoReader:
    """Reads files; to be used from several threads at once.

    Args:
        options: which faces are wanted.
        size: side of the crops, pixels.
        keep: keep the pictures for annotation.
        cards: whether the network was trained on drawn cards: then no faces are looked for, unless asked for by name.

    Raises:
        UserError: when the face finder is unknown or not installed.
    """

    def __init__(self, options: ReadingOptions, size: int, keep: bool = False, cards: bool = False) -> None:
        self._options, self._size, self.keep = options, size, keep
        self.finder: Finder | None = build_finder("none" if cards and options.faces == "auto" else options.faces)

    @property
    def way(self) -> str:
        """How faces are found, in words."""
        if self.finder is None:
            return "each photo is taken as one"
        return f"found by {self.finder.called}; for photos that are face crops, --faces none is quicker"

    def read(self, path: Path) -> Iterator[ReadPhoto]:
        """What is in a file; a file that cannot be used is one photo with a problem, whatever the problem is."""
        try:
            if path.suffix.lower() in VIDEO_EXTENSIONS:
                yield from self._frames(path)
            else:
                yield self.open(read_bytes(path), path)
        except ImageError as error:
            yield self._unusable(path, str(error))
        except Exception as error:  # decoders and finders raise anything; the other inputs go on
            _log.warning(f"{path}: {error!r}")
            yield self._unusable(path, f"failed ({' '.join(str(error).split())[:80] or type(error).__name__})")

    def open(self, content: bytes, path: Path) -> ReadPhoto:
        """What is in a photo that was read from a file already."""
        try:
            image = open_image(content)
            with _FOR_LARGE if image.width * image.height > _LARGE else contextlib.nullcontext():
                with image:  # which keeps its pixels too, until it is closed
                    photo = pixels_of(image)
                return self.look(photo, path)
        except ImageError as error:
            return self._unusable(path, str(error))

    def look(self, photo: NDArray[np.uint8], path: Path = Path(), seconds: float | None = None) -> ReadPhoto:
        """The faces of a decoded photo: RGB, uint8 ``(height, width, 3)``."""
        height, width = photo.shape[:2]
        if self.finder is None:
            crops, boxes = resize(photo, self._size)[None], [(0, 0, width, height)]
        else:
            faces = find_faces(self.finder, photo, self._options.min_size, self._options.largest)
            crops = np.zeros((len(faces), self._size, self._size, 3), np.uint8)
            for row, face in enumerate(faces):
                crops[row] = face.crop(photo, self._size)
            boxes = [face.box for face in faces]
        shown, shrunk = None, 1.0
        if self.keep:
            shrunk = min(1.0, _SHOWN / max(height, width))
            shape = (max(1, round(width * shrunk)), max(1, round(height * shrunk)))
            shown = np.asarray(cv2.resize(photo, shape, interpolation=cv2.INTER_AREA), np.uint8)
        return ReadPhoto(path, crops, boxes, seconds, shown=shown, shrunk=shrunk)

    def _frames(self, path: Path) -> Iterator[ReadPhoto]:
        open_file(path).close()
        try:
            name = str(path.absolute()).encode().decode()
        except UnicodeEncodeError:
            raise ImageError("a video's name must be UTF-8") from None  # OpenCV crashes
        video = cv2.VideoCapture(name)
        wanted = 0.0
        try:
            while video.grab():
                # A file that does not say how fast it plays has no times either: then frames count as 1/25 s.
                rate = video.get(cv2.CAP_PROP_FPS) or 25.0
                number = video.get(cv2.CAP_PROP_POS_FRAMES) - 1
                seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000 or max(0.0, number) / rate
                if seconds + 1e-6 < wanted:
                    continue
                readable, frame = video.retrieve()
                if not readable:
                    continue
                wanted = seconds + self._options.every
                rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                yield self.look(np.asarray(rgb, np.uint8), path, round(seconds, 3))
        finally:
            video.release()
        if not wanted:
            raise ImageError("no frame of it can be decoded")

    def _unusable(self, path: Path, problem: str) -> ReadPhoto:
        return ReadPhoto(path, np.zeros((0, self._size, self._size, 3), np.uint8), problem=problem)
