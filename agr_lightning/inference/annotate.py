"""Copies of photos with a box around each face, and what the network says of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from agr_lightning.errors import UserError
from agr_lightning.inference.answers import Answer
from agr_lightning.inference.photo_reader import ReadPhoto

# Legible in print and to the colour-blind: dark on light, and light on dark.
_INK, _PAPER = "#10243e", "#ffd23f"


def draw(photo: ReadPhoto, answers: Sequence[Answer]) -> Image.Image:
    """The kept picture of a photo, with boxes and labels."""
    assert photo.shown is not None
    image = Image.fromarray(photo.shown)
    canvas = ImageDraw.Draw(image)
    text_size = max(12, round(max(image.size) / 50))
    font = ImageFont.load_default(text_size)
    line = max(2, text_size // 7)
    for (x, y, width, height), answer in zip(photo.boxes, answers, strict=True):
        left, top, right, bottom = (round(value * photo.shrunk) for value in (x, y, x + width, y + height))
        canvas.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=_PAPER, width=line)
        text = label(answer)
        _, _, reach, depth = canvas.textbbox((0, 0), text, font)
        # Above the face, or inside where there is no room; never beyond the right edge.
        left = max(0, min(left, image.width - int(reach) - 2 * line))
        above = top - int(depth) - 2 * line
        top = above if above >= 0 else top
        canvas.rectangle((left, top, left + int(reach) + 2 * line, top + int(depth) + 2 * line), fill=_PAPER)
        canvas.text((left + line, top + line // 2), text, _INK, font)
    return image


def label(answer: Answer) -> str:
    """An answer in a line: years with their interval, and the likeliest classes."""
    parts = []
    if answer.age is not None:
        interval = "" if answer.age_low is None else f" ({answer.age_low:.0f}-{answer.age_high:.0f})"
        parts.append(f"{answer.age:.0f}{interval}")
    for name, probability in (
        (answer.gender, answer.gender_probability),
        (answer.race, answer.race_probability),
    ):
        if name is not None and probability is not None:
            parts.append(f"{name} {probability:.0%}")
    return "  ".join(parts)


def annotate(photo: ReadPhoto, answers: Sequence[Answer], folder: Path, inputs: Sequence[Path]) -> None:
    """Writes the copy of a photo, or of a frame, as JPEG.

    Args:
        photo: read with its picture kept; one that could not be used has no copy.
        answers: for its faces.
        folder: where copies go, in the folders that the inputs lie in.
        inputs: all of them.

    Raises:
        UserError: when it cannot be written.
    """
    if photo.shown is None:
        return
    try:
        shared = os.path.commonpath([path.absolute().parent for path in inputs])
        below = photo.path.absolute().relative_to(shared)
        frame = "" if photo.seconds is None else f".{photo.seconds:09.3f}s"
        suffix = "" if photo.path.suffix.lower() in (".jpg", ".jpeg") and not frame else ".jpg"
        target = folder / below.with_name(f"{below.name}{frame}{suffix}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.samefile(photo.path):
            raise UserError(f"--annotate {folder} would overwrite {photo.path}: name another folder.")
        draw(photo, answers).save(target, "JPEG", quality=90)
    except OSError as error:
        raise UserError(f"--annotate {folder}: {photo.path.name} cannot be written ({error.strerror}).") from None
