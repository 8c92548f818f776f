"""A photo -> the faces in it, cropped like UTKFace's own."""

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agr_lightning.data.images import resize
from agr_lightning.messages import UserError, needs

DetectorName = Literal["auto", "mtcnn", "haar", "none"]

# RGB, (height, width, 3); and a row (x, y) for each point, pixels.
Pixels = NDArray[np.uint8]
Points = NDArray[np.float64]

# Where MTCNN's eyes, nose and corners of the mouth lie in a UTKFace crop, as shares of its side: medians of
# benchmarks/crop_sensitivity.py.
_LANDMARKS = np.array([[0.301, 0.293], [0.692, 0.293], [0.493, 0.524], [0.322, 0.698], [0.670, 0.698]])

# A UTKFace crop is Haar's box, moved down by this share of its side.
_HAAR_SHIFT = 0.095

# A photo is searched at this size at most, longer side in pixels; the crops are taken from the photo itself.
_SEARCH_SIZE = 1280

# Detectors need to see where a head ends: a photo without a face, or with one that takes more than the first share of
# its shorter side, is searched again with the second share of it added around.
_TIGHT, _MARGIN = 0.6, 0.3


class Box(NamedTuple):
    """An upright square around a face, pixels, or a whole photo that is taken as one; it may reach beyond the photo.

    Attributes:
        x, y: its left and top.
        width, height: of it.
        face_probability: how sure the detector is; None where it does not say.
    """

    x: int
    y: int
    width: int
    height: int
    face_probability: float | None = None


@dataclass(frozen=True)
class Face:
    """A face, tilted as it is.

    Attributes:
        corners: of its square: top left, top right and bottom left in the photo, float64 ``(3, 2)``.
        probability: how sure the detector is; None where it does not say.
    """

    corners: Points
    probability: float | None = None

    @property
    def side(self) -> float:
        """Of the square, pixels."""
        return float(np.hypot(*(self.corners[1] - self.corners[0])))

    @property
    def box(self) -> Box:
        """The upright square around the same middle."""
        left, top = (self.corners[1] + self.corners[2]) / 2 - self.side / 2
        return Box(round(left), round(top), round(self.side), round(self.side), self.probability)

    def crop(self, photo: Pixels, size: int) -> Pixels:
        """The face, upright, as uint8 ``(size, size, 3)``; what lies outside of the photo repeats its edge."""
        # The part of the photo that holds the square, at least a pixel of it.
        square = np.vstack([self.corners, self.corners[1] + self.corners[2] - self.corners[0]])
        end = np.array(photo.shape[1::-1])
        low = np.floor(square.min(0)).clip(0, end - 1).astype(int)
        high = np.maximum(low + 1, np.minimum(np.ceil(square.max(0)).astype(int) + 1, end))
        part = photo[low[1] : high[1], low[0] : high[0]]
        # At most twice as many pixels as are asked for: `shrink` averages areas, and turning does not.
        side = max(1, round(min(self.side, 2 * size)))
        shrunk = shrink(part, min(1.0, 2 * size / self.side))
        # Between the middles of pixels, which lie half a pixel from the corners.
        source = (self.corners - low) * np.divide(shrunk.shape[1::-1], part.shape[1::-1]) - 0.5
        target = np.array([[0, 0], [side, 0], [0, side]], np.float32) - 0.5
        turn = cv2.getAffineTransform(target, source.astype(np.float32))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        upright = cv2.warpAffine(shrunk, turn, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return resize(np.asarray(upright, np.uint8), size)


# The faces of a photo with sides of so many pixels or more.
Detector = Callable[[Pixels, float], list[Face]]


def build_detector(name: DetectorName) -> Detector | None:
    """The face detector of this name, if installed; ``auto`` is MTCNN or else Haar; None takes photos as face crops."""
    installed = all(importlib.util.find_spec(library) for library in ("torch", "facenet_pytorch"))
    if name == "mtcnn" and not installed:
        raise UserError(f"--faces mtcnn {needs('facenet-pytorch', 'faces')}; or use --faces haar.")
    return {"mtcnn": mtcnn, "haar": haar, "none": None, "auto": mtcnn if installed else haar}[name]


def find_faces(detector: Detector, photo: Pixels, smallest: float, largest: int | None) -> list[Face]:
    """The faces of a photo with sides of ``smallest`` pixels or more, the largest first, and ``largest`` at most."""
    scale = min(1.0, _SEARCH_SIZE / max(photo.shape[:2]))
    searched = shrink(photo, scale)
    found = detector(searched, smallest * scale)
    shorter = min(searched.shape[:2])
    if max((face.side for face in found), default=math.inf) > _TIGHT * shorter:
        margin = math.ceil(_MARGIN * shorter)
        padded = np.pad(searched, ((margin, margin), (margin, margin), (0, 0)), "edge")
        found = [Face(face.corners - margin) for face in detector(padded, smallest * scale)] or found
    exact = np.divide(photo.shape[1::-1], searched.shape[1::-1])
    faces = [Face(face.corners * exact) for face in found]
    return sorted((face for face in faces if face.side >= smallest), key=lambda face: -face.side)[:largest]


def mtcnn(photo: Pixels, smallest: float) -> list[Face]:
    """MTCNN, by facenet-pytorch: finds tilted faces, and their eyes, by which they are turned upright.

    Source: Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", 2016.
    """
    # It looks for faces a bit narrower than the crop, from 12 pixels on. In steps, as each size has its own networks.
    least = max(12, int(0.85 * smallest) // 4 * 4)
    if min(photo.shape[:2]) <= least:
        return []
    _, _, landmarks = _mtcnn_networks(least).detect(photo, landmarks=True)
    return [] if landmarks is None else [align(np.asarray(points, np.float64)) for points in landmarks]


def haar(photo: Pixels, smallest: float) -> list[Face]:
    """OpenCV's Haar cascade: light, for frontal and upright faces.

    Source: Viola and Jones, "Rapid Object Detection Using a Boosted Cascade of Simple Features", CVPR 2001.
    """
    least = max(20, int(smallest))
    if min(photo.shape[:2]) < least:
        return []
    # A cascade keeps state while it searches: a new one for each call costs little beside the search.
    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"))
    found = cascade.detectMultiScale(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), 1.1, 3, minSize=(least, least))
    return [square(x + side / 2, y + (0.5 + _HAAR_SHIFT) * side, side) for x, y, side, _ in np.asarray(found).tolist()]


def square(x: float, y: float, side: float) -> Face:
    """The upright face with this middle and side, pixels."""
    left, top = x - side / 2, y - side / 2
    return Face(np.array([[left, top], [left + side, top], [left, top + side]]))


def align(points: Points) -> Face:
    """The square of a face from its landmarks ``(5, 2)``: the least-squares similarity from the usual places."""
    # As complex numbers, a similarity is z -> turn z + shift.
    usual, found = _LANDMARKS @ (1, 1j), points @ (1, 1j)
    turn, shift = np.linalg.lstsq(np.stack([usual, np.ones(5)], 1), found, rcond=None)[0]
    corners = shift + turn * np.array([0, 1, 1j])
    return Face(np.stack([corners.real, corners.imag], 1))


def shrink(photo: Pixels, scale: float) -> Pixels:
    """The photo at this share of its size, 1 or less."""
    shape = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    return np.asarray(cv2.resize(photo, shape, interpolation=cv2.INTER_AREA), np.uint8)


@functools.cache
def _mtcnn_networks(smallest: int) -> Any:
    import torch
    from facenet_pytorch import MTCNN

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return MTCNN(keep_all=True, min_face_size=smallest, device=device).requires_grad_(False)
