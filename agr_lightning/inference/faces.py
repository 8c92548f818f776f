"""A face in a photo: where it is, and how it is cropped like UTKFace's own."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agr_lightning.images import resize

# RGB, (height, width, 3); and a row (x, y) for each point, pixels.
Pixels = NDArray[np.uint8]
Points = NDArray[np.float64]


class Box(NamedTuple):
    """An upright square around a face, pixels, or a whole photo that is taken as one; it may reach beyond the photo.

    Attributes:
        x, y: its left and top.
        width, height: of it.
        face_probability: how sure the detector is; None where none has looked.
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
        probability: how sure the detector is; 0 where none has looked.
    """

    corners: Points
    probability: float = 0.0

    @property
    def side(self) -> float:
        """Of the square, pixels."""
        return float(np.hypot(*(self.corners[1] - self.corners[0])))

    @property
    def middle(self) -> Points:
        """Of the square, ``(x, y)`` in the photo."""
        return np.asarray((self.corners[1] + self.corners[2]) / 2)

    @property
    def box(self) -> Box:
        """The upright square around the same middle."""
        left, top = self.middle - self.side / 2
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


def square(x: float, y: float, side: float) -> Face:
    """The upright face with this middle and side, pixels."""
    left, top = x - side / 2, y - side / 2
    return Face(np.array([[left, top], [left + side, top], [left, top + side]]))


def shrink(photo: Pixels, scale: float) -> Pixels:
    """The photo at this share of its size, 1 or less."""
    shape = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    while 2 * shape[0] <= photo.shape[1] and 2 * shape[1] <= photo.shape[0]:
        # By halves, which takes an eighth of the time; of an odd side, a pixel goes.
        half = (photo.shape[1] // 2, photo.shape[0] // 2)
        photo = np.asarray(
            cv2.resize(photo[: 2 * half[1], : 2 * half[0]], half, interpolation=cv2.INTER_AREA), np.uint8
        )
    return np.asarray(cv2.resize(photo, shape, interpolation=cv2.INTER_AREA), np.uint8)
