"""Faces in photos: where they are, and how they are cropped."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agr_lightning.images import resize
from agr_lightning.inference import centerface as centerface_module
from agr_lightning.inference.centerface import _LANDMARKS, align, find_faces
from agr_lightning.inference.faces import Face, shrink, square
from tests.drawn_face import EYES, GROUND, draw_face, draw_photo

Photo = NDArray[np.uint8]


def _gradient(height: int, width: int) -> Photo:
    """Each pixel says where it is: red from left to right, green from top to bottom."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / max(1, width - 1), 255 * y / max(1, height - 1), 0 * x], 2).astype(np.uint8)


def test_all_faces_are_found_largest_first() -> None:
    photo = draw_photo((40, 100, 200), (330, 40, 380))
    faces = find_faces(photo, 30, None, 0.4)
    assert len(faces) == 2 and faces[0].side > 1.5 * faces[1].side
    for face, (left, top, size) in zip(faces, [(330, 40, 380), (40, 100, 200)], strict=True):
        x, y, width, height, _ = face.box
        assert width == height == round(face.side)
        # The head is in the middle of the picture; a crop holds the face and not the shoulders.
        assert x + width / 2 == pytest.approx(left + size / 2, abs=0.08 * size)
        assert y + height / 2 == pytest.approx(top + size * 0.57, abs=0.12 * size)
        assert 0.45 * size < width < 0.75 * size
    assert [face.box for face in find_faces(photo, 30, 1, 0.4)] == [faces[0].box]
    (alone,) = find_faces(photo, 170, None, 0.4)
    assert alone.corners == pytest.approx(faces[0].corners, abs=15)


def test_no_face_is_no_face() -> None:
    for photo in (draw_photo(), _gradient(200, 300), np.zeros((1, 1, 3), np.uint8), np.zeros((20, 3000, 3), np.uint8)):
        assert find_faces(photo, 30, None, 0.4) == []


def test_a_tight_crop_is_found_whole() -> None:
    """UTKFace's own crops have hardly anything around the face."""
    head = draw_face(400)
    tight = head[128:328, 100:300]
    (face,) = find_faces(tight, 30, None, 0.4)
    assert face.side == pytest.approx(200, abs=45)


def test_a_large_photo_is_searched_small_and_cropped_sharp(monkeypatch: pytest.MonkeyPatch) -> None:
    # Detail of 4 pixels, which a third of the size has lost.
    noise = np.random.default_rng(0).integers(0, 2, (600, 950, 1), np.uint8) * 255
    photo = noise.repeat(4, 0).repeat(4, 1).repeat(3, 2)
    seen: list[tuple[int, ...]] = []

    def detect(picture: Photo) -> tuple[NDArray[np.float64], ...]:
        seen.append(picture.shape[:2])
        found = len(seen) == 1  # the whole photo, at its first size
        box, points = np.array([[500.0, 300.0, 130, 160]]), np.array([centerface_module._LANDMARKS * 160 + (500, 300)])
        return (box, np.ones(1), points) if found else (box[:0], np.ones(0), points[:0])

    monkeypatch.setattr(centerface_module, "_detect", detect)
    (face,) = find_faces(photo, None)
    assert seen[:2] == [(495, 784), (165, 261)]
    assert face.side == pytest.approx(160 * 3800 / 784, rel=0.01)
    crop = face.crop(photo, 475)
    shown = crop[:, :, 0].astype(int)
    assert ((shown < 20) | (shown > 235)).mean() > 0.4


@pytest.mark.parametrize("place", [(1040, 500), (2350, 1180), (3600, 2000)])
def test_small_faces_of_a_large_photo_are_found_in_tiles(place: tuple[int, int]) -> None:
    """Also where tiles overlap; and each once."""
    photo = np.full((2200, 3900, 3), GROUND, np.uint8)
    x, y = place
    photo[y : y + 70, x : x + 70] = draw_face(70)
    (face,) = find_faces(photo, 30, confidence=0.4)
    assert 30 < face.side < 50 and x < face.box.x and face.box.x + face.box.width < x + 70


def test_a_photo_that_shows_small_faces_is_searched_for_smaller_ones() -> None:
    photo = np.full((2200, 3900, 3), GROUND, np.uint8)
    photo[300:370, 300:370] = draw_face(70)
    photo[1000:1220, 1000:1220] = draw_face(220)
    large, small = find_faces(photo, None, confidence=0.4)
    assert 100 < large.side < 150 and 30 < small.side < 50


@pytest.mark.parametrize("edge", ["left", "right", "top", "bottom"])
def test_a_face_that_the_edge_cuts_is_found(edge: str) -> None:
    """A fifth of it is missing."""
    photo, side = draw_photo((230, 60, 400)), 200
    left, top = 330, 190  # of the face
    cut = {
        "left": photo[:, left + side // 5 :],
        "right": photo[:, : left + side * 4 // 5],
        "top": photo[top + side // 5 :],
        "bottom": photo[: top + side * 4 // 5],
    }[edge]
    (face,) = find_faces(cut, None, confidence=0.4)
    assert face.side == pytest.approx(side, abs=50)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_faces_of_a_photo_on_its_side_are_found_upright(turns: int) -> None:
    photo = draw_photo((40, 100, 220), (330, 40, 380))
    upright = find_faces(photo, None, confidence=0.5)
    faces = find_faces(np.rot90(photo, turns), None, confidence=0.5)
    assert len(faces) == len(upright) == 2
    for face, other in zip(faces, upright, strict=True):
        edge = face.corners[1] - face.corners[0]
        assert (-np.degrees(np.arctan2(edge[1], edge[0])) - 90 * turns + 180) % 360 == pytest.approx(180, abs=8)
        crops = [each.crop(whole, 64).astype(int) for each, whole in ((face, np.rot90(photo, turns)), (other, photo))]
        assert np.abs(crops[0] - crops[1]).mean() < 40


def test_a_part_of_a_face_does_not_say_how_a_photo_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found of a face on its side may be an eye: where it is none by itself, the whole photo says it."""
    photo = np.rot90(draw_photo((200, 60, 320)))
    search = centerface_module._search

    def find_an_eye(picture: Photo, *options: Any) -> list[Face]:
        eye = Face(square(60, 60, 40).corners, 0.7)
        return [eye] if picture is photo else search(picture, *options)

    monkeypatch.setattr(centerface_module, "_search", find_an_eye)
    (face,) = find_faces(photo, None, confidence=0.4)
    assert face.side > 120


def test_confidence_is_the_least_probability() -> None:
    photo = draw_photo((40, 100, 220), (330, 40, 380))
    faces = find_faces(photo, None)
    sure = [face.probability for face in faces]
    assert max(sure) > 0.5
    limit = sorted(sure)[-1]
    assert [face.probability for face in find_faces(photo, None, confidence=limit)] == [limit]


@pytest.mark.parametrize("angle", [-30, 0, 20])
def test_tilted_faces_are_turned_upright(angle: int) -> None:
    turn = cv2.getRotationMatrix2D((380, 240), angle, 1)
    ground = (168, 188, 205)
    photo = cv2.warpAffine(
        draw_photo((230, 90, 300)), turn, (760, 480), borderMode=cv2.BORDER_CONSTANT, borderValue=ground
    )
    (face,) = find_faces(np.asarray(photo, np.uint8), 30, None, 0.4)
    edge = face.corners[1] - face.corners[0]
    assert np.degrees(np.arctan2(edge[1], edge[0])) == pytest.approx(-angle, abs=4)
    # Where the crop is taken from, the eyes are where UTKFace has them.
    basis = np.stack([edge, face.corners[2] - face.corners[0]], 1)
    for (x, y), expected in zip(EYES, _LANDMARKS, strict=False):
        there = turn @ np.array([230 + 300 * x, 90 + 300 * y, 1])
        assert np.linalg.solve(basis, there - face.corners[0]) == pytest.approx(expected, abs=0.04)


def test_landmarks_at_their_usual_places_give_the_usual_square() -> None:
    usual, mirrored = align(np.array([_LANDMARKS * 80 + (10, 20), _LANDMARKS[[1, 0, 2, 4, 3]]]), np.ones(2))
    assert usual.corners == pytest.approx(np.array([[10, 20], [90, 20], [10, 100]]))
    assert np.isfinite(mirrored.corners).all()  # nobody's face; but never an error


def test_an_upright_crop_is_the_pixels_of_the_photo() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    assert (square(40, 30, 32).crop(photo, 32) == photo[14:46, 24:56]).all()
    assert (square(40, 30, 40).crop(photo, 20) == resize(photo[10:50, 20:60], 20)).all()


def test_beyond_the_photo_its_edge_is_repeated() -> None:
    photo = _gradient(50, 50)
    crop = square(0, 0, 40).crop(photo, 40)
    assert (crop[:20, :20] == photo[0, 0]).all() and (crop[20:, 20:] == photo[:20, :20]).all()
    assert (square(-500, -500, 20).crop(photo, 20) == photo[0, 0]).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1))
def test_a_shrunk_photo_shows_the_same(height: int, width: int, scale: float) -> None:
    photo = _gradient(height, width)
    shrunk = shrink(photo, scale)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    assert shrunk.shape == (*shape, 3)
    # Within a third of a pixel, and rounding.
    means = shrunk.mean((0, 1)) - photo.mean((0, 1))
    assert (np.abs(means[:2]) < 4 + 85 / np.array(shape[::-1])).all()


@settings(max_examples=200, deadline=None)
@given(
    *(st.integers(1, 200), st.integers(1, 200)),
    *(st.floats(-300, 500), st.floats(-300, 500)),
    *(st.floats(0.5, 2000), st.floats(-180, 180)),
)
def test_any_square_can_be_cropped(height: int, width: int, x: float, y: float, side: float, angle: float) -> None:
    photo = _gradient(height, width)
    turn = np.radians(angle)
    across = side * np.array([np.cos(turn), np.sin(turn)])
    down = np.array([-across[1], across[0]])
    start = np.array([x, y])
    crop = Face(np.array([start, start + across, start + down])).crop(photo, 24)
    assert crop.shape == (24, 24, 3) and crop.dtype == np.uint8
    # Its middle is that of the square, or the nearest edge.
    middle = start + (across + down) / 2
    where = middle.clip(0, (width, height))
    if side < 4 * min(width, height) and min(width, height) > 30:
        expected = 255 * where / (width, height)
        assert crop[11:13, 11:13, :2].mean((0, 1)) == pytest.approx(
            expected, abs=255 * max(3, side / 8) / min(width, height)
        )
