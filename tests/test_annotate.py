import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agr_lightning.inference import annotate as annotate_module
from agr_lightning.inference.annotate import Edges, Label, annotator, draw, label, place_labels
from agr_lightning.inference.faces import Box
from agr_lightning.inference.photos import Photo
from agr_lightning.inference.predictor import Answer
from tests.drawn_face import draw_photo

TEXT = "#{}  34 (28-40)  female 98%  white 50%"


def test_labels() -> None:
    whole = Answer(33.6, 28.2, 40.4, {"male": 0.02, "female": 0.98}, {"white": 0.5, "asian": 0.3})
    assert label(whole) == "34 (28-40)  female 98%  white 50%"
    assert label(replace(whole, races=None)) == "34 (28-40)  female 98%"
    assert label(Answer(8.0, None, None, None, None)) == "8"


def test_several_faces_are_numbered_as_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer(8.0, None, None, None, None)
    texts: list[str] = []
    monkeypatch.setattr(annotate_module, "label", lambda *given: texts.append(label(*given)) or "")
    boxes = [Box(40, 100, 220, 220), Box(330, 40, 380, 380)]
    for count in (1, 2):
        crops = np.zeros((count, 32, 32, 3), np.uint8)
        annotate_module.draw(Photo(Path(), crops, boxes[:count], picture=draw_photo()), [answer] * count)
    assert texts == ["8", "#0  8", "#1  8"]


def _place(boxes: Sequence[Edges], picture: tuple[int, int]) -> list[Label]:
    """Labels as they are placed, after a look that they are inside and that none is over another."""
    labels = place_labels([TEXT.format(face) for face in range(len(boxes))], boxes, picture)
    for each in labels:
        left, top, right, bottom = each.edges
        assert 0 <= left < right <= picture[0] and 0 <= top < bottom <= picture[1]
    for one, other in combinations(labels, 2):
        assert not _shared(one.edges, other.edges)
    return labels


def _shared(one: Edges, other: Edges) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


def _square(left: int, top: int, side: int) -> Edges:
    return left, top, left + side, top + side


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.lists(st.builds(_square, st.integers(-300, 900), st.integers(-300, 900), st.integers(1, 900)), max_size=8),
)
def test_labels_neither_hide_each_other_nor_leave_the_picture(picture: tuple[int, int], boxes: list[Edges]) -> None:
    _place(boxes, picture)


def test_labels_of_a_crowd_hide_no_face() -> None:
    boxes = [_square(60 + 190 * column, 100 + 200 * row, 150) for row in range(5) for column in range(10)]
    labels = _place(boxes, (2048, 1300))
    assert [each.text for each in labels] == [TEXT.format(face) for face in range(50)]
    assert not any(_shared(each.edges, box) for each in labels for box in boxes)


@pytest.mark.parametrize(
    ("box", "picture", "text"),
    [
        (_square(200, 100, 300), (640, 480), TEXT),
        (_square(-100, -100, 300), (640, 480), TEXT),
        (_square(600, 400, 300), (640, 480), TEXT),
        (_square(0, 0, 400), (400, 400), TEXT),
        (_square(10, 100, 100), (120, 2000), TEXT.replace("  ", "\n")),
        (_square(10, 0, 20), (2000, 20), TEXT),
        (_square(5, 5, 50), (60, 60), "#{}"),
        (_square(0, 0, 40), (40, 40), "#{}"),
    ],
)
def test_a_label_says_what_there_is_room_for(box: Edges, picture: tuple[int, int], text: str) -> None:
    assert [each.text for each in _place([box], picture)] == [text.format(0)]


@pytest.mark.parametrize(
    "name", ["a" * 252 + ".png", "é" * 125 + ".png", os.fsdecode(b"\xff" * 251) + ".jpg", "あ" * 254]
)
def test_a_copy_has_a_name_however_long_that_of_its_photo_is(tmp_path: Path, name: str) -> None:
    photos = [Photo(tmp_path / f"{each}{name}", np.zeros(0, np.uint8), picture=draw_photo()) for each in "ab"]
    frames = [photos[0]._replace(seconds=seconds) for seconds in (1.0, 2.5)]
    write = annotator(str(tmp_path / "copies"), [*(photo.path for photo in photos), tmp_path / "\ud800"])
    for photo in photos + frames:
        write(photo, [])
    names = [copy.name for copy in (tmp_path / "copies").iterdir()]
    assert len(names) == 4 and all(each[0] in "ab" and each.endswith(".jpg") for each in names)
    assert sum("00002.500s" in each for each in names) == 1


def test_there_may_be_no_room_at_all() -> None:
    assert _place([_square(0, 0, 5)], (5, 5)) == []


@pytest.mark.parametrize(("width", "height", "scale"), [(600, 400, 1.0), (60, 60, 0.1), (1, 1, 0.01)])
def test_a_picture_is_changed_at_boxes_and_labels_alone(width: int, height: int, scale: float) -> None:
    answers = [Answer(8.0, 4.0, 12.0, {"male": 0.9, "female": 0.1}, None)] * 2
    boxes = [Box(20, 40, 200, 200), Box(300, -50, 250, 250, 0.9)]
    photo = Photo(Path(), np.zeros(0, np.uint8), boxes, picture=np.zeros((height, width, 3), np.uint8), scale=scale)
    drawn = np.asarray(draw(photo, answers)).any(2)
    assert drawn.shape == (height, width) and drawn.any()
    allowed = np.zeros_like(drawn)
    squares: list[Edges] = []
    for box in boxes:
        left, top, right, bottom = (round(end * scale) for end in (box.x, box.y, box.x + box.width, box.y + box.height))
        squares.append((left, top, max(left + 1, right), max(top + 1, bottom)))
    labels = place_labels([label(answer, face) for face, answer in enumerate(answers)], squares, (width, height))
    for left, top, right, bottom in squares + [each.edges for each in labels]:
        allowed[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    assert not (drawn & ~allowed).any()
