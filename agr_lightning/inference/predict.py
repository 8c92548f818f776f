"""Photos and videos -> predictions.csv, without Lightning: what `predict` does where no option needs a Trainer."""

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from agr_lightning.data.photos import VIDEO_EXTENSIONS, find_photos
from agr_lightning.errors import UserError
from agr_lightning.files import user_path
from agr_lightning.inference.annotate import Annotator
from agr_lightning.inference.answers import Answer
from agr_lightning.inference.photo_reader import PhotoReader, ReadingOptions, ReadPhoto
from agr_lightning.inference.predictions import Format, Row, rows_of, write_rows
from agr_lightning.inference.predictor import Predictor
from agr_lightning.run_files import PREDICTIONS_FILES, RUNS_FOLDER, reserve_run

_log = logging.getLogger(__name__)

# So many photos are read ahead where their pictures are kept, of up to 12 MB each.
_PICTURES = 8

T = TypeVar("T", ReadingOptions, "OutputOptions")

Found = tuple[ReadPhoto, list[Answer]]


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
            rows = _rows(found_in(paths, reader, predictor, batch_size, bar), marker)
            counts = write_rows(file, rows, output.format)
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


def found_in(
    paths: Sequence[Path], reader: PhotoReader, predictor: Predictor, batch_size: int, bar: "tqdm[object] | None" = None
) -> Iterator[Found]:
    """What is found in files, in their order; faces are computed in batches, across files."""
    waiting: list[ReadPhoto] = []
    faces = 0
    for photo in _read_ahead(paths, reader, _PICTURES if reader.keep else batch_size, bar):
        waiting.append(photo)
        faces += len(photo.crops)
        if faces >= batch_size or len(waiting) >= (_PICTURES if reader.keep else 2 * batch_size):
            yield from _answered(waiting, predictor, batch_size)
            waiting, faces = [], 0
    yield from _answered(waiting, predictor, batch_size)


def _answered(photos: list[ReadPhoto], predictor: Predictor, batch_size: int) -> Iterator[Found]:
    found = iter(predictor(np.concatenate([photo.crops for photo in photos]), batch_size) if photos else [])
    for photo in photos:
        yield photo, [next(found) for _ in photo.boxes]


def _read_ahead(
    paths: Sequence[Path], reader: PhotoReader, ahead: int, bar: "tqdm[object] | None"
) -> Iterator[ReadPhoto]:
    """Reads photos in threads, some ahead of what is asked for; videos, which are long, when they are asked for."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading: deque[tuple[Path, Future[list[ReadPhoto]] | None]] = deque()
        todo = iter(paths)
        try:
            while True:
                while len(reading) < ahead and (path := next(todo, None)) is not None:
                    video = path.suffix.lower() in VIDEO_EXTENSIONS
                    reading.append((path, None if video else pool.submit(lambda path: list(reader.read(path)), path)))
                if not reading:
                    return
                path, future = reading.popleft()
                yield from reader.read(path) if future is None else future.result()
                if bar is not None:
                    bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _rows(found: Iterator[Found], marker: Annotator | None) -> Iterator[Row]:
    for photo, answers in found:
        if marker is not None:
            marker(photo, answers)
        yield from rows_of(photo, answers)
