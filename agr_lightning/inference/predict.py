"""Photos and videos -> predictions.csv, without Lightning: what `predict` does where no option needs a Trainer."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from agr_lightning.data.photos import find_photos
from agr_lightning.files import user_path
from agr_lightning.inference.annotate import Annotator
from agr_lightning.inference.photo_batches import photo_batches
from agr_lightning.inference.photo_reader import PhotoReader, ReadingOptions, ReadPhoto
from agr_lightning.inference.predictions import Format, Row, rows_of, write_rows
from agr_lightning.inference.predictor import Predictor
from agr_lightning.messages import UserError
from agr_lightning.runs import PREDICTIONS_FILES, RUNS_FOLDER, reserve_run

_log = logging.getLogger(__name__)

T = TypeVar("T", ReadingOptions, "OutputOptions")


@dataclass(frozen=True)
class OutputOptions:
    """What `predict` writes.

    Args:
        format: csv, or jsonl with one JSON object a line.
        annotate: folder for copies with boxes and labels; None for no copies.
    """

    format: Format = "csv"
    annotate: str | None = None

    def __post_init__(self) -> None:
        if self.format not in PREDICTIONS_FILES:
            raise UserError(f"--format {self.format}: expected {' or '.join(PREDICTIONS_FILES)}.")

    @property
    def folder(self) -> Path | None:
        """For the copies."""
        return None if self.annotate is None else user_path(self.annotate)


def chosen(kind: type[T], options: Mapping[str, Any]) -> T:
    """A ``ReadingOptions`` or ``OutputOptions`` of what was parsed, which may hold more than that."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})


def predict(
    place: str | None,
    named: str | None,
    reading: ReadingOptions,
    output: OutputOptions,
    root: Path,
    batch_size: int = 64,
    progress: bool = True,
) -> None:
    """Predicts for what ``place`` names, and says what was done.

    Args:
        place: see ``find_photos``.
        named: the network, see ``Predictor.load``.
        reading: which faces are wanted.
        output: what to write.
        root: the folder that holds ``lightning_logs``, where a run folder is made.
        batch_size: faces that are computed at once.
        progress: show a progress bar.

    Raises:
        UserError: for what the user can cure.
    """
    if batch_size < 1:
        raise UserError(f"--data.batch_size {batch_size} must be 1 or more.")
    paths = find_photos(place)
    marker = None if output.folder is None else Annotator(output.folder, paths)
    predictor = Predictor.load(named, root)
    reader = PhotoReader(reading, predictor.image_size, output.folder is not None, predictor.of_cards)
    _log.info(f"Network      {predictor.source}")
    _log.info(f"Faces        {reader.way}")
    run = root / RUNS_FOLDER / f"version_{reserve_run(root)}"
    file = run / PREDICTIONS_FILES[output.format]
    try:
        with tqdm(total=len(paths), desc="Predicting", unit="photo", disable=not progress) as bar:
            batches = photo_batches(list(enumerate(paths)), reader, batch_size, bar.update)
            counts = write_rows(file, _rows(batches, predictor, batch_size, marker), output.format)
    except BaseException:
        run.rmdir()
        raise
    say_result(len(paths), counts, file)


def say_result(inputs: int, counts: Counter[str], file: Path) -> None:
    """Says what was written.

    Args:
        inputs: how many there were.
        counts: rows of each status.
        file: where they are.
    """
    statuses = ", ".join(f"{count:,} {status}" for status, count in counts.items())
    _log.info(f"{inputs:,} inputs: {statuses}")
    _log.info(f"Predictions  {file}")


def _rows(
    batches: Iterator[list[ReadPhoto]], predictor: Predictor, batch_size: int, marker: Annotator | None
) -> Iterator[Row]:
    for photos in batches:
        found = iter(predictor(np.concatenate([photo.crops for photo in photos]), batch_size))
        for photo in photos:
            answers = [next(found) for _ in photo.boxes]
            if marker is not None:
                marker(photo, answers)
            yield from rows_of(photo, answers)
