"""Annotated copies of photos: a box and a label for each face."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

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


def draw(photo: Photo, answers: Sequence[Answer]) -> Image.Image:
    """The kept picture of a photo, with boxes and labels; several faces have their numbers, as in predictions.csv."""
    assert photo.picture is not None
    image = Image.fromarray(photo.picture)
    canvas = ImageDraw.Draw(image)
    text_size = max(12, round(max(image.size) / 50))
    font = ImageFont.load_default(text_size)
    line = max(2, text_size // 7)
    for face, ((x, y, width, height, _), answer) in enumerate(zip(photo.boxes, answers, strict=True)):
        left, top, right, bottom = (round(value * photo.scale) for value in (x, y, x + width, y + height))
        canvas.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=_PAPER, width=line)
        text = label(answer, face if len(answers) > 1 else None)
        _, _, text_width, text_height = (int(end) + 2 * line for end in canvas.textbbox((0, 0), text, font))
        # Above the face, or inside where there is no room; never beyond the right edge.
        left = max(0, min(left, image.width - text_width))
        top = top - text_height if top >= text_height else top
        canvas.rectangle((left, top, left + text_width, top + text_height), fill=_PAPER)
        canvas.text((left + line, top + line // 2), text, _INK, font)
    return image


def label(answer: Answer, face: int | None = None) -> str:
    """An answer in a line: the face's number, years with their interval, and the most probable classes."""
    parts = [] if face is None else [f"#{face}"]
    if answer.age is not None:
        interval = "" if answer.age_low is None else f" ({answer.age_low:.0f}-{answer.age_high:.0f})"
        parts.append(f"{answer.age:.0f}{interval}")
    parts += [f"{name} {probability:.0%}" for (name, probability), *_ in answer.ranked.values()]
    return "  ".join(parts)


def annotator(folder: str, inputs: Sequence[Path]) -> Annotator:
    """What writes copies as JPEG files, in ``folder`` as the inputs lie in theirs; none may take an input's place."""
    root = Path(os.path.abspath(user_path(folder)))  # noqa: PTH100 (keeps links)
    absolute = {Path(os.path.abspath(path)) for path in inputs}  # noqa: PTH100
    shared = os.path.commonpath([path.parent for path in absolute])

    def target(path: Path, seconds: float | None = None) -> Path:
        below = Path(os.path.relpath(path, shared))
        frame = "" if seconds is None else f".{seconds:09.3f}s"
        suffix = "" if path.suffix.lower() in (".jpg", ".jpeg") and not frame else ".jpg"
        return root / below.with_name(f"{below.name}{frame}{suffix}")

    def write(photo: Photo, answers: Sequence[Answer]) -> None:
        if photo.picture is not None:  # it could be used
            path = target(photo.path, photo.seconds)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                draw(photo, answers).save(file, "JPEG", quality=90, comment=COPY_COMMENT)

    if lost := absolute & {target(path) for path in absolute}:
        raise UserError(f"--annotate {folder} would overwrite {min(lost).name}, an input: name another folder.")
    return write
