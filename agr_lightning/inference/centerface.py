"""CenterFace by onnxruntime: a photo -> its faces, of any size and pose, upright."""

import functools
import itertools
import math
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agr_lightning.files import WEIGHTS
from agr_lightning.inference.faces import Face, Pixels, Points, shrink, square
from agr_lightning.inference.predictor import open_session

# Where CenterFace's eyes, nose and corners of the mouth lie in a UTKFace crop, as shares of its side: medians of 900
# crops at the second look, the pairs level.
_LANDMARKS = np.array([[0.295, 0.294], [0.695, 0.294], [0.487, 0.506], [0.331, 0.686], [0.655, 0.686]])

# CenterFace finds faces with sides of 28 to some 600 pixels. A photo is searched at this size at most, longer side in
# pixels, and at a third of that where it is above the last, for larger faces.
_LEAST, _FIRST, _LAST = 28, 784, 480

# Side of the smallest face where none is asked for, pixels.
_SMALLEST = 30

# Where some of this probability are less than so many times as large as the smallest that are found, it is searched
# again, at so many times the size.
_HINT, _SMALL, _FINER = 0.2, 1.2, 1.6

# Larger levels are searched in overlapping tiles of this side, pixels, which bounds the memory.
_TILE, _OVERLAP = 1280, 192

# Grey pixels around a picture, into which faces that its edge cuts may go on.
_AROUND = 24

# Probabilities: a face is likely by the first, upright by the second, on its side where it has the third more when it
# is turned; and what has less than the last is none, whatever the user asks for.
_LIKELY, _UPRIGHT, _MARGIN, _FAINT = 0.5, 0.85, 0.05, 0.1

# A face is looked at again by itself, in a view of this side, pixels, and so many times as large as the face.
_VIEW, _WIDE = 80, 1.5

# Boxes that share more of their area (intersection over union) are of one face.
_SAME = 0.3


def find_faces(
    photo: Pixels, smallest: float | None = None, largest: int | None = None, confidence: float = 0
) -> list[Face]:
    """Finds faces of any pose, also where the photo's edge cuts them, and turns them upright; the largest first.

    A photo that lies on its side is set upright. Source: Xu et al., "CenterFace: Joint Face Detection and Alignment
    Using Face as Point", 2019.

    Args:
        photo: RGB, uint8 ``(height, width, 3)``.
        smallest: side of the smallest face, pixels; None for 30 in photos with such small faces, and for a 28th of the
            longer side in others.
        largest: how many at most; None for all.
        confidence: the least ``probability`` of a face.
    """
    least = max(smallest or _LEAST, max(photo.shape[:2]) * _LEAST / _FIRST)
    faces = _search(photo, least, smallest)
    turns = _turns(photo, max(faces, key=attrgetter("probability"), default=None))
    turned = np.rot90(photo, turns)
    faces = _again(turned, _search(turned, least, smallest) if turns else faces)
    # Around the middle of the photo, a quarter turn is a multiplication with i.
    middle, other = np.array(photo.shape[1::-1]) / 2 @ (1, 1j), np.array(turned.shape[1::-1]) / 2 @ (1, 1j)
    corners = [_plane(middle + (face.corners @ (1, 1j) - other) * 1j**turns) for face in faces]
    found = [Face(*one) for one in zip(corners, (face.probability for face in faces), strict=True)]
    wanted = [face for face in found if face.probability >= confidence and face.side >= (smallest or _SMALLEST)]
    return sorted(wanted, key=lambda face: -face.side)[:largest]


def _again(photo: Pixels, faces: list[Face]) -> list[Face]:
    """Each face once, by a second look at it alone and upright, as probable as on average of both."""
    found = []
    for face in _distinct(faces):
        grown = face.middle + _WIDE * (face.corners - face.middle)
        boxes, probabilities, landmarks = _detect(Face(grown).crop(photo, _VIEW))
        # Whose middle is near that of the view.
        probabilities *= (np.abs(boxes[:, :2] + boxes[:, 2:] / 2 - _VIEW / 2) < _VIEW / 4).all(1)
        if not probabilities.any():
            found.append(Face(face.corners, face.probability / 2))
            continue
        best = [int(probabilities.argmax())]
        (again,) = align(landmarks[best], (probabilities[best] + face.probability) / 2)
        found.append(Face(grown[0] + again.corners / _VIEW @ (grown[1:] - grown[0]), again.probability))
    return _distinct(found)


def _turns(photo: Pixels, best: Face | None) -> int:
    """How many quarter turns, counterclockwise, set a photo upright, by its most probable face, or by all of it."""
    for view in _views(photo, best):
        found = [_most(view)]
        if found[0] >= _UPRIGHT:
            break
        found += [_most(np.rot90(view, turns)) for turns in (1, 2, 3)]
        turns = int(np.argmax(found))
        if found[turns] >= _LIKELY:  # else the face was none, or a part of one
            return turns if found[turns] >= found[0] + _MARGIN else 0
    return 0


def _views(photo: Pixels, best: Face | None) -> Iterator[Pixels]:
    """The face, where it is likely, and then the whole photo, which takes longer."""
    if best is not None and best.probability >= _LIKELY:
        x, y = best.middle
        yield square(x, y, _WIDE * best.side).crop(photo, _VIEW)
    yield shrink(photo, min(1.0, _LAST / max(photo.shape[:2])))


def _most(picture: Pixels) -> float:
    return float(_detect(picture)[1].max(initial=0))


def _distinct(faces: list[Face]) -> list[Face]:
    """Each face once, where it is most probable."""
    boxes, probabilities = [face.box[:4] for face in faces], [face.probability for face in faces]
    return [faces[index] for index in cv2.dnn.NMSBoxes(boxes, probabilities, 0.0, _SAME)]


def _search(photo: Pixels, least: float, smallest: float | None) -> list[Face]:
    """All that may be faces in an upright photo, some of them several times.

    They have sides of ``least`` pixels or more; of ``smallest`` where that is less; and of less where it is None and
    there are some of hardly ``least`` pixels.
    """
    level = shrink(photo, min(1.0, _LEAST / least))
    faces = find_at_size(level, photo)
    if max(level.shape[:2]) > _LAST:
        faces += find_at_size(shrink(level, 1 / 3), photo)
    target, hint = smallest or _LEAST, _HINT
    while least > target:
        hints = (face.side for face in faces if face.probability >= hint)
        if smallest is None and min(hints, default=math.inf) >= _SMALL * least:
            break
        least, hint = target if smallest else max(target, least / _FINER), _LIKELY
        faces += find_at_size(shrink(photo, min(1.0, _LEAST / least)), photo)
    return faces


def find_at_size(level: Pixels, photo: Pixels) -> list[Face]:
    """All that may be faces at one size of a photo, some of them several times, in pixels of the photo."""
    probabilities, landmarks = (np.concatenate(part) for part in zip(*_tiles(level), strict=True))
    return align(landmarks * np.divide(photo.shape[1::-1], level.shape[1::-1]), probabilities)


def _tiles(level: Pixels) -> Iterator[tuple[Points, Points]]:
    """What is found in each tile of a level, without what another tile shows whole."""
    height, width = level.shape[:2]
    starts = [range(0, max(1, side - _OVERLAP), _TILE - _OVERLAP) for side in (height, width)]
    for top, left in itertools.product(*starts):
        tile = level[top : top + _TILE, left : left + _TILE]
        boxes, probabilities, landmarks = _detect(tile)
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        end = np.array(tile.shape[1::-1])
        inner = (np.array([left, top]) > 0, np.array([left, top]) + end < (width, height))
        whole = ~((low < 0) & inner[0] | (high > end) & inner[1]).any(1)
        shift = np.array([left, top])
        yield probabilities[whole], (landmarks + shift)[whole]


def _detect(picture: Pixels) -> tuple[Points, Points, Points]:
    """CenterFace's boxes ``(faces, 4)``: left, top, width, height; probabilities; landmarks ``(faces, 5, 2)``."""
    height, width = picture.shape[:2]
    # With sides in multiples of 32.
    sides = [-(-(side + 2 * _AROUND) // 32) * 32 for side in (height, width)]
    padded = np.full((*sides, 3), 127, np.float32)
    padded[_AROUND : _AROUND + height, _AROUND : _AROUND + width] = picture
    heat, size, offset, places = open_network().run(None, {"input.1": padded.transpose(2, 0, 1)[None]})
    cells = np.nonzero(heat[0, 0] > _FAINT)
    # A cell is 4 pixels wide. The network says height before width, and y before x.
    sides = 4 * np.exp(size[0][:, *cells])
    start = 4 * (np.stack(cells) + offset[0][:, *cells] + 0.5) - sides / 2
    landmarks = places[0][:, *cells].reshape(5, 2, -1) * sides + start
    boxes = np.stack([*(start[::-1] - _AROUND), *sides[::-1]], 1, dtype=np.float64)
    return boxes, heat[0, 0][cells].astype(np.float64), landmarks.transpose(2, 0, 1)[:, :, ::-1] - float(_AROUND)


@functools.cache
def open_network() -> Any:
    """CenterFace in onnxruntime, for pictures of any size."""
    return open_session(WEIGHTS / "centerface.onnx")


def align(points: Points, probabilities: Points) -> list[Face]:
    """The squares of faces from their landmarks ``(faces, 5, 2)``: least-squares similarities from the usual places."""
    # As complex numbers, a similarity is z -> turn z + shift.
    usual, found = _LANDMARKS @ (1, 1j), points @ (1, 1j)
    turn, shift = np.linalg.lstsq(np.stack([usual, np.ones(5)], 1), found.T, rcond=None)[0]
    corners = _plane(shift[:, None] + turn[:, None] * np.array([0, 1, 1j]))
    return [Face(*one) for one in zip(corners, probabilities.tolist(), strict=True)]


def _plane(points: NDArray[np.complex128]) -> Points:
    return np.stack([points.real, points.imag], -1)
