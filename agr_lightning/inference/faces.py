"""A photo -> the faces in it, cropped like UTKFace's own."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from agr_lightning.data.images import resize
from agr_lightning.messages import UserError, did_you_mean, needs

FinderName = Literal["auto", "mtcnn", "haar", "none"]

Points = NDArray[np.float64]

# Where MTCNN's eyes, nose and corners of the mouth lie in a UTKFace crop, as shares of its side: medians of
# benchmarks/crop_sensitivity.py.
_LANDMARKS = np.array([[0.301, 0.293], [0.692, 0.293], [0.493, 0.524], [0.322, 0.698], [0.670, 0.698]])

# A UTKFace crop is Haar's box, moved down by this share of its side.
_HAAR_SHIFT = 0.095

# A photo is searched at this size at most, longer side in pixels; the crops are taken from the photo itself.
_SEARCHED = 1280

# Detectors want to see where a head ends. A photo without a face, or with one that takes more than the first share of
# its shorter side, is searched again with the second share of it added around.
_TIGHT, _SURROUNDINGS = 0.6, 0.3


@dataclass(frozen=True)
class Face:
    """One face of a photo.

    Attributes:
        corners: of its square, as in a UTKFace crop: top left, top right and bottom left, in pixels of the photo,
            float64 ``(3, 2)``. It is tilted as the face is.
    """

    corners: Points

    @property
    def side(self) -> float:
        """Of the square, pixels."""
        return float(np.hypot(*(self.corners[1] - self.corners[0])))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the upright square around the same middle, pixels."""
        left, top = (self.corners[1] + self.corners[2]) / 2 - self.side / 2
        return round(left), round(top), round(self.side), round(self.side)

    def crop(self, photo: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """The face, upright, as uint8 ``(size, size, 3)``; what lies outside of the photo repeats its edge."""
        # First a square of the photo's own pixels, or of twice as many as are asked for: `resize` averages areas, and
        # turning does not.
        scale = min(1.0, 2 * size / self.side)
        low = np.floor(self.corners.min(0).clip(0)).astype(int)
        reach = self.corners[1] + self.corners[2] - self.corners[0]
        high = np.ceil(np.maximum(self.corners.max(0), reach)).astype(int) + 1
        part = photo[_within(low[1], high[1], len(photo)), _within(low[0], high[0], photo.shape[1])]
        offset = np.array([min(low[0], photo.shape[1] - 1), min(low[1], len(photo) - 1)])
        if scale < 1:
            shape = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
            exact = np.array([shape[0] / part.shape[1], shape[1] / part.shape[0]])
            part = np.asarray(cv2.resize(part, shape, interpolation=cv2.INTER_AREA), np.uint8)
        else:
            exact = np.ones(2)
        side = max(1, round(self.side * scale))
        # Between the middles of pixels, which lie half a pixel from the corners.
        there = ((self.corners - offset) * exact - 0.5).astype(np.float32)
        here = np.array([[0, 0], [side, 0], [0, side]], np.float32) - 0.5
        turn = cv2.getAffineTransform(here, there)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        square = cv2.warpAffine(part, turn, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return resize(np.asarray(square, np.uint8), size)


class Finder(Protocol):
    """Finds faces.

    Attributes:
        called: its name, for people.
    """

    called: str

    def __call__(self, photo: NDArray[np.uint8], smallest: float) -> list[Face]:
        """The faces of a photo, uint8 ``(height, width, 3)``, with sides of ``smallest`` pixels or more."""


def build_finder(name: FinderName) -> Finder | None:
    """The finder called ``name``; None where photos are taken as face crops.

    Args:
        name: auto is MTCNN where it is installed, and otherwise OpenCV's Haar cascade.

    Raises:
        UserError: for an unknown name, or when it is not installed.
    """
    if name not in get_args(FinderName):
        raise UserError(
            f"--faces {name}{did_you_mean(name, get_args(FinderName))}: expected auto, mtcnn, haar or none."
        )
    if name == "none":
        return None
    if name in ("auto", "mtcnn"):
        try:
            return MTCNNFinder()
        except ImportError:
            if name == "mtcnn":
                raise UserError(f"--faces mtcnn {needs('facenet-pytorch', 'faces')}; or use --faces haar.") from None
    return HaarFinder()


def find_faces(finder: Finder, photo: NDArray[np.uint8], smallest: float, largest: int | None) -> list[Face]:
    """The faces of a photo, the largest first.

    Args:
        finder: what finds them.
        photo: RGB, uint8 ``(height, width, 3)``.
        smallest: side of the smallest square to return, pixels.
        largest: how many to return; None for all.
    """
    height, width = photo.shape[:2]
    scale = min(1.0, _SEARCHED / max(height, width))
    searched = photo
    if scale < 1:
        shape = (max(1, round(width * scale)), max(1, round(height * scale)))
        searched = np.asarray(cv2.resize(photo, shape, interpolation=cv2.INTER_AREA), np.uint8)
    found = finder(searched, smallest * scale)
    if max((face.side for face in found), default=math.inf) > _TIGHT * min(searched.shape[:2]):
        margin = math.ceil(_SURROUNDINGS * min(searched.shape[:2]))
        padded = cv2.copyMakeBorder(searched, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
        again = [Face(face.corners - margin) for face in finder(np.asarray(padded, np.uint8), smallest * scale)]
        found = again or found
    actual = np.array([width / searched.shape[1], height / searched.shape[0]])
    faces = [Face(face.corners * actual) for face in found]
    faces = sorted((face for face in faces if face.side >= smallest), key=lambda face: -face.side)
    return faces if largest is None else faces[:largest]


class MTCNNFinder:
    """MTCNN, by facenet-pytorch: finds tilted faces, and their eyes, by which they are turned upright.

    Source: Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", IEEE
    Signal Processing Letters 2016.

    Raises:
        ImportError: when facenet-pytorch is not installed.
    """

    called = "MTCNN"

    def __init__(self) -> None:
        import torch
        from facenet_pytorch import MTCNN

        self._kind, self._torch = MTCNN, torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._networks: dict[int, MTCNN] = {}

    def __call__(self, photo: NDArray[np.uint8], smallest: float) -> list[Face]:
        # MTCNN looks for faces a bit narrower than the crop, from 12 pixels on.
        # In steps, as each size has networks of its own.
        least = max(12, int(0.85 * smallest) // 4 * 4)
        if min(photo.shape[:2]) <= least:
            return []
        if least not in self._networks:
            self._networks[least] = self._kind(keep_all=True, min_face_size=least, device=self._device)
        with self._torch.inference_mode():
            _, _, landmarks = self._networks[least].detect(photo, landmarks=True)
        return [] if landmarks is None else [_aligned(np.asarray(points, np.float64)) for points in landmarks]


class HaarFinder:
    """OpenCV's Haar cascade: light, for frontal and upright faces.

    Source: Viola and Jones, "Rapid Object Detection Using a Boosted Cascade of Simple Features", CVPR 2001.
    """

    called = "OpenCV's Haar cascade"

    def __init__(self) -> None:
        self._file = str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml")

    def __call__(self, photo: NDArray[np.uint8], smallest: float) -> list[Face]:
        # A cascade keeps state while it searches: a new one for each call costs little beside the search.
        cascade = cv2.CascadeClassifier(self._file)
        gray = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
        least = max(20, int(smallest))
        if min(photo.shape[:2]) < least:
            return []
        found = cascade.detectMultiScale(gray, 1.1, 3, minSize=(least, least))
        return [
            square(x + side / 2, y + (0.5 + _HAAR_SHIFT) * side, side) for x, y, side, _ in np.asarray(found).tolist()
        ]


def square(x: float, y: float, side: float) -> Face:
    """The upright face with this middle and side, pixels."""
    left, top = x - side / 2, y - side / 2
    return Face(np.array([[left, top], [left + side, top], [left, top + side]]))


def _aligned(points: Points) -> Face:
    """The square of a face from its landmarks ``(5, 2)``: the least-squares similarity from the usual places."""
    x, y = _LANDMARKS.T
    zero, one = np.zeros(5), np.ones(5)
    # u = a x - b y + c and v = b x + a y + d.
    system = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(system, points.T.ravel(), rcond=None)[0]
    return Face(np.array([[c, d], [c + a, d + b], [c - b, d + a]]))


def _within(low: int, high: int, length: int) -> slice:
    """Rows from low to high of so many; at least one of them, where all of a face lies outside."""
    start = min(max(low, 0), length - 1)
    return slice(start, max(start + 1, min(high, length)))
