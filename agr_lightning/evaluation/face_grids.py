"""Grids of faces with what was predicted and labelled, drawn with Pillow: no plots."""

from itertools import zip_longest
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from agr_lightning.evaluation.figures import ACCENT, INK
from agr_lightning.evaluation.table import Table
from agr_lightning.labels import CLASSES, MISSING

# Lines and columns; side of a face, room above it for its caption, gap between, and room for the title, pixels.
_GRID = (4, 8)
_FACE, _CAPTION, _GAP, _TITLE = 136, 58, 16, 40
FACES_SHOWN = _GRID[0] * _GRID[1]

# Years of error from which a caption is red.
_FAR_OFF = 10


def sample_rows(table: Table) -> NDArray[np.int64]:
    """Rows spread evenly over the table: neighbours in name order look alike."""
    shown = min(FACES_SHOWN, len(table.age))
    return np.arange(shown) * len(table.age) // max(shown, 1)


def worst_rows(table: Table) -> NDArray[np.int64]:
    """Rows of the worst mistakes: the largest age errors and the surest wrong classes, in turns."""
    scores = [np.nan_to_num(np.abs(table.error()), nan=-1.0)]
    for task in CLASSES:
        probabilities, _, known = table.classifier(task)
        wrong = known & (table.hits(task) == 0)
        scores.append(np.where(wrong, np.nan_to_num(probabilities).max(1), -1.0))
    ranked = [[row for row in np.argsort(-score, kind="stable")[:FACES_SHOWN] if score[row] > 0] for score in scores]
    turns = [row for rows in zip_longest(*ranked) for row in rows if row is not None]
    return np.array(list(dict.fromkeys(turns))[:FACES_SHOWN], dtype=np.int64)


def draw_faces(table: Table, faces: NDArray[np.uint8], mistakes: NDArray[np.uint8]) -> dict[str, Image.Image]:
    """The two grids, by file name without its ending.

    Args:
        table: labels and predictions of a test set.
        faces: images of ``sample_rows(table)``, RGB, uint8 ``(faces, height, width, 3)``.
        mistakes: images of ``worst_rows(table)``, likewise.

    Returns:
        A sample, and the worst mistakes where there are any.
    """
    what = "predicted (labelled, where it differs)"
    red = f"red: gender or race differs, or age by more than {_FAR_OFF} years"
    grids = {"sample_faces": _draw_grid(table, sample_rows(table), faces, f"A sample: {what}; {red}")}
    worst = worst_rows(table)
    if len(worst):
        grids["worst_mistakes"] = _draw_grid(table, worst, mistakes, f"The worst mistakes: {what}")
    return grids


def _draw_grid(table: Table, rows: NDArray[np.int64], faces: NDArray[np.uint8], title: str) -> Image.Image:
    columns = _GRID[1]
    across, down = _FACE + _GAP, _CAPTION + _FACE + _GAP
    sheet = Image.new("RGB", (columns * across + _GAP, _TITLE + -(-len(rows) // columns) * down), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((sheet.width / 2, _TITLE / 2), title, INK, _font(18), anchor="mm")
    for place, face in enumerate(faces):
        line, column = divmod(place, columns)
        left, top = _GAP + column * across, _TITLE + line * down + _CAPTION
        sheet.paste(Image.fromarray(face).resize((_FACE, _FACE), Image.Resampling.BILINEAR), (left, top))
        text, right = _caption(table, int(rows[place]))
        where = (left + _FACE / 2, top - 4)
        draw.multiline_text(where, text, INK if right else ACCENT, _font(14), anchor="md", align="center", spacing=2)
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    """That of the plots, which matplotlib brings along."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _caption(table: Table, row: int) -> tuple[str, bool]:
    """What to write above a face, and whether the prediction is right."""
    lines, right = [], True
    age = table.predicted_age[row]
    if not np.isnan(age):
        lines.append(f"{age:.0f} ({table.age[row]:.0f})")
        right &= bool(abs(age - table.age[row]) <= _FAR_OFF)
    for task, classes in CLASSES.items():
        probabilities, labels, _ = table.classifier(task)
        if np.isnan(probabilities[row]).any():
            continue
        guess, label = int(probabilities[row].argmax()), int(labels[row])
        same = label == guess
        lines.append(classes[guess] if same else f"{classes[guess]} ({classes[label] if label != MISSING else '?'})")
        right &= same or label == MISSING
    return "\n".join(lines), right
