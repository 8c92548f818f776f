"""predictions.csv, or .jsonl: at least one row for every input, in input order."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from agr_lightning.files import atomic_write
from agr_lightning.inference.answers import Answer
from agr_lightning.inference.photo_reader import ReadPhoto
from agr_lightning.labels import GENDERS, RACES

Format = Literal["csv", "jsonl"]

COLUMNS = (
    *("path", "face", "status", "x", "y", "width", "height"),
    *("age", "age_low", "age_high", "gender", "gender_probability", "race", "race_probability"),
    *(f"prob_{name}" for name in GENDERS + RACES),
    *("seconds", "reason"),
)

Row = dict[str, str | int | float]

OK, NO_FACE, UNREADABLE = "ok", "no_face", "unreadable"


def rows_of(photo: ReadPhoto, answers: Sequence[Answer]) -> list[Row]:
    """The rows of a photo, from the answers for its faces: one for each, or one that says why there is none."""
    common: Row = {"path": str(photo.path)}
    if photo.seconds is not None:
        common["seconds"] = photo.seconds
    if photo.problem is not None:
        return [common | {"status": UNREADABLE, "reason": photo.problem}]
    if not photo.boxes:
        return [common | {"status": NO_FACE}]
    rows = []
    for number, (box, answer) in enumerate(zip(photo.boxes, answers, strict=True)):
        place = dict(zip(("x", "y", "width", "height"), box, strict=True))
        rows.append(common | {"face": number, "status": OK} | place | _values(answer))
    return rows


def _values(answer: Answer) -> Row:
    row: Row = {}
    for name in ("age", "age_low", "age_high"):
        if (years := getattr(answer, name)) is not None:
            row[name] = round(years, 2)
    for task, best, probabilities in (("gender", answer.gender, answer.genders), ("race", answer.race, answer.races)):
        if best is not None and probabilities is not None:
            row |= {task: best, f"{task}_probability": round(probabilities[best], 4)}
            row |= {f"prob_{name}": round(value, 4) for name, value in probabilities.items()}
    return row


def as_csv(rows: Iterable[Row]) -> str:
    """The text of predictions.csv."""
    return "".join(_lines(rows, "csv", Counter()))


def write_rows(path: Path, rows: Iterable[Row], style: Format) -> Counter[str]:
    """Writes rows as they come; the file appears when they have ended without an error.

    Returns:
        How many rows have each status.
    """
    counts: Counter[str] = Counter()
    with atomic_write(path) as file:
        for text in _lines(rows, style, counts):
            file.write(text.encode("utf-8", "surrogateescape"))
    return counts


def _lines(rows: Iterable[Row], style: Format, counts: Counter[str]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    if style == "csv":
        writer.writeheader()
    for row in rows:
        counts[str(row["status"])] += 1
        if style == "csv":
            writer.writerow(row)
        else:
            buffer.write(json.dumps({name: row[name] for name in COLUMNS if name in row}) + "\n")
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()
