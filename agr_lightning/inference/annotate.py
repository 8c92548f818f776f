"""Annotated copies of photos: a box and a label for each face."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from agr_lightning.files import atomic_write, user_path
from agr_lightning.inference.inputs import COPY_COMMENT
from agr_lightning.inference.photos import Photo
from agr_lightning.inference.predictor import Answer
from agr_lightning.messages import UserError

# Writes the annotated copy of a photo.
Annotator = Callable[[Photo, Sequence[Answer]], None]

# Legible in print and to the colour-blind: dark on light, and light on dark.
_INK, _PAPER = "#10243e", "#ffd23f"

# Left, top, right and bottom, pixels; the last two are the first beyond.
Edges = tuple[int, int, int, int]

_MEASURE = ImageDraw.Draw(Image.new("1", (1, 1)))


class Label(NamedTuple):
    """A text, the size of its letters in pixels, and the edges of its ground."""

    text: str
    size: int
    edges: Edges


def draw(photo: Photo, answers: Sequence[Answer]) -> Image.Image:
    """The kept picture of a photo, with boxes and labels; several faces have their numbers, as in predictions.csv."""
    assert photo.picture is not None
    image = Image.fromarray(photo.picture)
    canvas = ImageDraw.Draw(image)
    boxes: list[Edges] = []
    for x, y, width, height, _ in photo.boxes:
        left, top, right, bottom = (round(value * photo.scale) for value in (x, y, x + width, y + height))
        boxes.append((left, top, right, bottom))
        inclusive = (left, top, max(left, right - 1), max(top, bottom - 1))
        canvas.rectangle(inclusive, outline=_PAPER, width=_margin(_text_size(image.size)))
    texts = [label(answer, face if len(answers) > 1 else None) for face, answer in enumerate(answers)]
    for text, size, edges in place_labels(texts, boxes, image.size):
        image.paste(_PAPER, edges)
        canvas.text((edges[0] + _margin(size), edges[1] + _margin(size) // 2), text, _INK, ImageFont.load_default(size))
    return image


def place_labels(texts: Sequence[str], boxes: Sequence[Edges], picture: tuple[int, int]) -> list[Label]:
    """Labels of boxes, inside a picture of this width and height, none over another.

    Each hides no face, or an eighth of its own at most, or as little as it can; it may have smaller letters, several
    lines, or its first part alone for that. Where there is no room at all, it is left out.
    """
    placed: list[Label] = []
    for text, box in zip(texts, boxes, strict=True):
        labels = [other.edges for other in placed]
        free = [choice for choice in _choices(text, box, picture) if not _hidden(choice, labels)]
        placed += sorted(free, key=lambda choice: _harm(choice, box, boxes))[:1]
    return placed


def _harm(choice: Label, box: Edges, boxes: Sequence[Edges]) -> int:
    """0 where a label of a box hides no face, 1 where an eighth of the box at most, and more."""
    hidden = _hidden(choice, boxes)
    return min(hidden, max(1, hidden - (box[2] - box[0]) * (box[3] - box[1]) // 8))


def _choices(text: str, box: Edges, picture: tuple[int, int]) -> Iterator[Label]:
    """How and where the label of a box may be, the best first; inside the picture."""
    left, top, right, bottom = box
    size = min(_text_size(picture), max(12, (right - left) // 12))
    texts = [text, text.replace("  ", "\n"), text.partition("  ")[0]]
    sizes = (size, max(9, 3 * size // 4), 9)
    for letters, words in [*product(sizes, texts[:2]), *product(sizes, texts[2:])]:
        bounds = _MEASURE.textbbox((0, 0), words, ImageFont.load_default(letters))
        width, height = (int(bound) + 2 * _margin(letters) for bound in bounds[2:])
        most_left, most_top = picture[0] - width, picture[1] - height
        beside = ((left, top - height), (left, bottom), (right, top), (left - width, top))
        for x, y in (*beside, (left, top), (left, bottom - height)):
            if min(most_left, most_top) >= 0:
                x, y = max(0, min(x, most_left)), max(0, min(y, most_top))
                yield Label(words, letters, (x, y, x + width, y + height))


def _hidden(choice: Label, areas: Iterable[Edges]) -> int:
    """How many pixels of some areas a label covers."""
    left, top, right, bottom = choice.edges
    sides = ((min(right, far) - max(left, near), min(bottom, low) - max(top, high)) for near, high, far, low in areas)
    return sum(max(0, width) * max(0, height) for width, height in sides)


def _text_size(picture: tuple[int, int]) -> int:
    return max(12, round(max(picture) / 50))


def _margin(text_size: int) -> int:
    return max(2, text_size // 7)


def label(answer: Answer, face: int | None = None) -> str:
    """An answer in a line: the face's number, years with their interval, and the most probable classes."""
    parts = [] if face is None else [f"#{face}"]
    if answer.age is not None:
        interval = "" if answer.age_low is None else f" ({answer.age_low:.0f}-{answer.age_high:.0f})"
        parts.append(f"{answer.age:.0f}{interval}")
    parts += [f"{name} {probability:.0%}" for (name, probability), *_ in answer.ranked.values()]
    return "  ".join(parts)


def cut_name(name: str, end: str) -> str:
    """A name with an end, cut to the 255 bytes of a file's; names that are cut differ as they did."""
    whole = name.encode(errors="replace")
    if len(whole) + len(end) <= 255:
        return name + end
    end = f"~{zlib.crc32(name.encode(errors='surrogatepass')):08x}{end.removesuffix('.jpg')}.jpg"
    return whole[: 255 - len(end)].decode(errors="ignore") + end


def annotator(folder: str, inputs: Sequence[Path]) -> Annotator:
    """What writes copies as JPEG files, in ``folder`` as the inputs lie in theirs; none may take an input's place."""
    root = Path(os.path.abspath(user_path(folder)))  # noqa: PTH100 (keeps links)
    absolute = {Path(os.path.abspath(path)) for path in inputs}  # noqa: PTH100
    shared = os.path.commonpath([path.parent for path in absolute])

    def target(path: Path, seconds: float | None = None) -> Path:
        below = Path(os.path.relpath(path, shared))
        frame = "" if seconds is None else f".{seconds:09.3f}s"
        suffix = "" if path.suffix.lower() in (".jpg", ".jpeg") and not frame else ".jpg"
        return root / below.with_name(cut_name(below.name, f"{frame}{suffix}"))

    def write(photo: Photo, answers: Sequence[Answer]) -> None:
        if photo.picture is not None:  # it could be used
            path = target(photo.path, photo.seconds)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, lasting=False) as file:
                draw(photo, answers).save(file, "JPEG", quality=90, comment=COPY_COMMENT)

    if lost := absolute & {target(path) for path in absolute}:
        raise UserError(f"--annotate {folder} would overwrite {min(lost).name}, an input: name another folder.")
    return write
