"""Photos and videos -> predictions.csv, or .jsonl, with at least one row for every input."""

import contextlib
import csv
import heapq
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal

import numpy as np
from tqdm import tqdm

from agr_lightning.files import PREDICTIONS_FILES, RUNS_FOLDER, atomic_write, reserve_run
from agr_lightning.inference.annotate import Annotator, annotator
from agr_lightning.inference.inputs import find_photos
from agr_lightning.inference.photos import Photo, PhotoOptions, PhotoReader, photo_batches
from agr_lightning.inference.predictor import OUTPUTS, Answer, Predictor
from agr_lightning.labels import GENDERS, RACES
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

Format = Literal["csv", "jsonl"]

COLUMNS = (
    *("path", "face", "status", "x", "y", "width", "height"),
    *("age", "age_low", "age_high", "gender", "gender_probability", "race", "race_probability"),
    *(f"prob_{name}" for name in GENDERS + RACES),
    *("seconds", "reason", "face_probability", "prob_under_18"),
)

# By column, and the index of the input.
Row = dict[str, str | int | float]

# How a cell begins that spreadsheets take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Inputs:
    """What to predict for.

    Args:
        predict_path: a photo or video, a folder (searched recursively), a glob in quotes, or a .txt list.
        batch_size: faces that are computed at once.
    """

    predict_path: str = ""
    batch_size: int = 64


def predict(
    data: Inputs, ckpt_path: str | None = None, format: Format = "csv", annotate: str | None = None, **faces: Any
) -> None:
    """Predicts for the faces in photos and videos: predictions.csv. Takes --config, --model and --trainer options too.

    Args:
        data: what to predict for.
        ckpt_path: an exported .onnx or .safetensors file, a checkpoint, a run folder, 'best' or 'last', or 'agr' or
            'small' for a network that is shipped with this project; null for 'agr'.
        format: csv, or jsonl with one JSON object a line.
        annotate: folder for copies with boxes and labels; null for no copies.
        **faces: which faces are wanted, as in ``PhotoOptions``.
    """
    options = PhotoOptions(**faces)
    if data.batch_size < 1:
        raise UserError(f"--data.batch_size {data.batch_size} must be 1 or more.")
    paths = find_photos(data.predict_path)
    copies = None if annotate is None else annotator(annotate, paths)
    predictor = Predictor.load(ckpt_path)
    reader = PhotoReader(options, predictor.image_size, annotate is not None, predictor.of_cards)
    _log.info(f"Network      {predictor.source}")
    _log.info(f"Faces        {reader.description}")
    path = Path(RUNS_FOLDER, f"version_{reserve_run(Path())}", PREDICTIONS_FILES[format])
    with atomic_write(path) as file, tqdm(total=len(paths), desc="Predicting", unit="photo", disable=None) as bar:
        table = TableWriter(file, format, copies)
        for batch in photo_batches(list(enumerate(paths)), reader, data.batch_size):
            table.write(batch, predictor(np.concatenate([photo.crops for photo in batch]), data.batch_size))
            bar.update(batch[-1].index + 1 - bar.n)
    say_result(len(paths), table.counts, path)


def _rows(photo: Photo, answers: Sequence[Answer]) -> Iterator[Row]:
    """The rows of a photo, from the answers for its faces: one for each, or one that says why there is none."""
    common: Row = {"index": photo.index, "path": str(photo.path), "status": "ok"}
    if photo.seconds is not None:
        common["seconds"] = photo.seconds
    if photo.problem is not None:
        yield common | {"status": "unreadable", "reason": photo.problem}
    elif not photo.boxes:
        yield common | {"status": "no_face"}
    for face, (box, answer) in enumerate(zip(photo.boxes, answers, strict=True)):
        place = {name: round(value, 4) for name, value in box._asdict().items() if value is not None}
        row = common | {"face": face} | place
        row |= {name: round(years, 2) for name in OUTPUTS[:3] if (years := getattr(answer, name)) is not None}
        for task, classes in answer.ranked.items():
            row |= {task: classes[0][0], f"{task}_probability": round(classes[0][1], 4)}
            row |= {f"prob_{name}": round(probability, 4) for name, probability in classes}
        if answer.prob_under_18 is not None:
            row["prob_under_18"] = round(answer.prob_under_18, 4)
        yield row


class TableWriter:
    """Writes rows as they are made, and annotated copies of photos; ``counts`` has how many rows have each status.

    The format ``part`` is what one of several processes writes, for ``join_parts``.
    """

    def __init__(self, file: IO[bytes], format: Format | Literal["part"], annotate: Annotator | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._file, self._format, self._annotate = file, format, annotate
        # With its usual end of a line, which is not that of the file, the writer quotes every kind of line break.
        self._csv = csv.DictWriter(SimpleNamespace(write=self._write_line), COLUMNS, extrasaction="ignore")
        if format == "csv":
            self._csv.writeheader()

    def write(self, photos: Iterable[Photo], answers: Iterable[Answer]) -> None:
        """Writes some photos, from the answers for the faces of all of them."""
        found = iter(answers)
        for photo in photos:
            of_photo = photo.answers(found)
            self.write_rows(_rows(photo, of_photo))
            if self._annotate is not None:
                self._annotate(photo, of_photo)

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Writes some rows."""
        for row in rows:
            self.counts[str(row["status"])] += 1
            if self._format == "csv":
                safe = {name: f"'{row[name]}" for name in ("path", "reason") if str(row.get(name)).startswith(_FORMULA)}
                self._csv.writerow(row | safe)
            else:
                kept = row if self._format == "part" else {name: row[name] for name in COLUMNS if name in row}
                self._write_line(json.dumps(kept))

    def _write_line(self, text: str) -> None:
        self._file.write((text.removesuffix("\r\n") + "\n").encode("utf-8", "surrogateescape"))


def join_parts(parts: Sequence[Path], path: Path, format: Format) -> Counter[str]:
    """Joins what several processes have written, in the order of the inputs, and removes it; returns the counts."""
    with contextlib.ExitStack() as stack:
        table = TableWriter(stack.enter_context(atomic_write(path)), format)
        rows = [map(json.loads, stack.enter_context(part.open())) for part in parts]
        table.write_rows(heapq.merge(*rows, key=lambda row: row["index"]))
    for part in parts:
        part.unlink()
    return table.counts


def say_result(inputs: int, counts: Counter[str], file: Path) -> None:
    """Says how many inputs there were, how many rows have each status, and where they are."""
    _log.info(f"{inputs:,} inputs: {', '.join(f'{count:,} {status}' for status, count in counts.items())}")
    _log.info(f"Predictions  {file}")
