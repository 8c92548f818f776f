"""Photos and videos -> predictions.csv, or .jsonl: at least one row for every input, in input order."""

import contextlib
import csv
import heapq
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from agr_lightning.files import atomic_write
from agr_lightning.inference.annotate import Annotator
from agr_lightning.inference.photos import Photo, PhotoOptions, PhotoReader, find_photos, photo_batches
from agr_lightning.inference.predictor import Answer, Predictor
from agr_lightning.labels import GENDERS, RACES
from agr_lightning.messages import UserError
from agr_lightning.runs import PREDICTIONS_FILES, RUNS_FOLDER, reserve_run

_log = logging.getLogger(__name__)

# `part` is what one of several processes writes, for `join_parts`.
Format = Literal["csv", "jsonl", "part"]

COLUMNS = (
    *("path", "face", "status", "x", "y", "width", "height"),
    *("age", "age_low", "age_high", "gender", "gender_probability", "race", "race_probability"),
    *(f"prob_{name}" for name in GENDERS + RACES),
    *("seconds", "reason"),
)

# By column, and the index of the input.
Row = dict[str, str | int | float]

# How a cell begins that spreadsheets take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class OutputOptions:
    """What `predict` writes.

    Args:
        format: csv, or jsonl with one JSON object a line.
        annotate: folder for copies with boxes and labels; null for no copies.
    """

    format: Literal["csv", "jsonl"] = "csv"
    annotate: str | None = None


def predict(
    predict_path: str = "",
    ckpt_path: str | None = None,
    batch_size: int = 64,
    photos: PhotoOptions = PhotoOptions(),  # noqa: B008 (frozen)
    output: OutputOptions = OutputOptions(),
    root: Path = Path(),
    progress: bool = True,
) -> None:
    """Finds the faces in photos and videos, and predicts for each: predictions.csv in a run folder.

    Args:
        predict_path: a photo or video, a folder (searched recursively), a glob in quotes, or a .txt list.
        ckpt_path: an exported .onnx or .safetensors file, a checkpoint, a run folder, 'best' or 'last', or 'agr' or
            'small' for a network that is shipped with this project; null for 'agr'.
        batch_size: faces that are computed at once.
        photos: which faces are wanted.
        output: what is written.
        root: the folder that holds lightning_logs.
        progress: whether to show a progress bar.

    Raises:
        UserError: when there are no such photos, or no such network.
    """
    if batch_size < 1:
        raise UserError(f"--data.batch_size {batch_size} must be 1 or more.")
    paths = find_photos(predict_path)
    annotator = None if output.annotate is None else Annotator(output.annotate, paths)
    predictor = Predictor.load(ckpt_path, root)
    reader = PhotoReader(photos, predictor.image_size, annotator is not None, predictor.of_cards)
    _log.info(f"Network      {predictor.source}")
    _log.info(f"Faces        {reader.description}")
    file = root / RUNS_FOLDER / f"version_{reserve_run(root)}" / PREDICTIONS_FILES[output.format]
    with (
        TableWriter(file, output.format) as table,
        tqdm(total=len(paths), desc="Predicting", unit="photo", disable=not progress) as bar,
    ):
        for batch in photo_batches(list(enumerate(paths)), reader, batch_size):
            found = iter(predictor(np.concatenate([photo.crops for photo in batch]), batch_size))
            for photo in batch:
                answers = [next(found) for _ in photo.boxes]
                table.write(rows_of(photo, answers))
                if annotator is not None:
                    annotator(photo, answers)
            bar.update(batch[-1].index + 1 - bar.n)
    say_result(len(paths), table.counts, file)


def rows_of(photo: Photo, answers: Sequence[Answer]) -> list[Row]:
    """The rows of a photo, from the answers for its faces: one for each, or one that says why there is none."""
    common: Row = {"index": photo.index, "path": str(photo.path)}
    if photo.seconds is not None:
        common["seconds"] = photo.seconds
    if photo.problem is not None:
        return [common | {"status": "unreadable", "reason": photo.problem}]
    if not photo.boxes:
        return [common | {"status": "no_face"}]
    rows = []
    for face, (box, answer) in enumerate(zip(photo.boxes, answers, strict=True)):
        row = common | {"face": face, "status": "ok"} | dict(zip(("x", "y", "width", "height"), box, strict=True))
        for name in ("age", "age_low", "age_high"):
            if (years := getattr(answer, name)) is not None:
                row[name] = round(years, 2)
        for task, best, classes in (("gender", answer.gender, answer.genders), ("race", answer.race, answer.races)):
            if best is not None and classes is not None:
                row |= {task: best, f"{task}_probability": round(classes[best], 4)}
                row |= {f"prob_{name}": round(probability, 4) for name, probability in classes.items()}
        rows.append(row)
    return rows


class TableWriter(contextlib.ExitStack[bool | None]):
    """Writes rows as they are made, in a ``with`` block; the file appears when that ends without an error.

    Args:
        path: the file.
        format: of it.

    Attributes:
        counts: how many rows have each status.
    """

    def __init__(self, path: Path, format: Format) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._format = format
        self._file = self.enter_context(atomic_write(path))
        if format == "csv":
            self._file.write(_csv_line(COLUMNS).encode())

    def write(self, rows: Iterable[Row]) -> None:
        """Writes some rows."""
        for row in rows:
            self.counts[str(row["status"])] += 1
            self._file.write(_line(row, self._format).encode("utf-8", "surrogateescape"))


def join_parts(parts: Sequence[Path], path: Path, format: Format) -> Counter[str]:
    """Joins what several processes have written as ``part``, in the order of the inputs, and removes it.

    Returns:
        How many rows have each status.
    """
    with TableWriter(path, format) as table:
        rows = [map(json.loads, table.enter_context(part.open())) for part in parts]
        table.write(heapq.merge(*rows, key=lambda row: row["index"]))
    for part in parts:
        part.unlink()
    return table.counts


def as_csv(rows: Iterable[Row]) -> str:
    """The text of predictions.csv."""
    return "".join([_csv_line(COLUMNS), *(_line(row, "csv") for row in rows)])


def say_result(inputs: int, counts: Counter[str], file: Path) -> None:
    """Says how many inputs there were, how many rows have each status, and where they are."""
    _log.info(f"{inputs:,} inputs: {', '.join(f'{count:,} {status}' for status, count in counts.items())}")
    _log.info(f"Predictions  {file}")


def _line(row: Row, format: Format) -> str:
    if format == "part":
        return json.dumps(row) + "\n"
    if format == "jsonl":
        return json.dumps({name: row[name] for name in COLUMNS if name in row}) + "\n"
    cells = {name: row.get(name, "") for name in COLUMNS}
    for name in ("path", "reason"):
        if str(cells[name]).startswith(_FORMULA):
            cells[name] = f"'{cells[name]}"
    return _csv_line(cells.values())


def _csv_line(cells: Iterable[object]) -> str:
    buffer = io.StringIO()
    # With its usual end of a line, which is not that of the file, the writer quotes every kind of line break.
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"
