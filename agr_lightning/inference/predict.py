"""Photos and videos -> predictions.csv, or .jsonl, with at least one row for every input."""

import contextlib
import csv
import heapq
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal

import numpy as np
from tqdm import tqdm

from agr_lightning.files import PREDICTIONS_FILES, RUNS_FOLDER, atomic_write, reserve_run, user_path
from agr_lightning.inference.annotate import annotator
from agr_lightning.inference.centerface import open_network
from agr_lightning.inference.inputs import find_photos
from agr_lightning.inference.parts import Row, describe_job, open_part, read_part, unfinished_run
from agr_lightning.inference.photos import Photo, PhotoOptions, PhotoReader, photo_batches
from agr_lightning.inference.predictor import OUTPUTS, Answer, Predictor
from agr_lightning.labels import GENDERS, RACES
from agr_lightning.messages import STDOUT, UserError, stdout_for

_log = logging.getLogger(__name__)

Format = Literal["csv", "jsonl"]

COLUMNS = (
    *("path", "face", "status", "x", "y", "width", "height"),
    *("age", "age_low", "age_high", "gender", "gender_probability", "race", "race_probability"),
    *(f"prob_{name}" for name in GENDERS + RACES),
    *("seconds", "reason", "face_probability", "prob_under_18"),
)

# The columns with paths, and how a cell begins that spreadsheets take for a formula.
_PATHS = ("path", "file", "crop")
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
    data: Inputs,
    ckpt_path: str | None = None,
    format: Format = "csv",
    annotate: str | None = None,
    output: str | None = None,
    resume: bool = False,
    **faces: Any,
) -> None:
    """Predicts for the faces in photos and videos: predictions.csv. Takes --config, --model and --trainer options too.

    Args:
        data: what to predict for.
        ckpt_path: an exported .onnx or .safetensors file, a checkpoint, a run folder, 'best' or 'last', or 'agr' or
            'small' for a network that is shipped with this project; null for 'agr'.
        format: csv, or jsonl with one JSON object a line.
        annotate: folder for copies with boxes and labels; null for no copies.
        output: a .csv or .jsonl file for the table, or - for stdout; null for the next run folder.
        resume: go on with the same job where it was stopped: that of the output, or of the newest run folder.
        **faces: which faces are wanted, as in ``PhotoOptions``.
    """
    options = PhotoOptions(**faces)
    if data.batch_size < 1:
        raise UserError(f"--data.batch_size {data.batch_size} must be 1 or more.")
    with stdout_for(output):
        paths = find_photos(data.predict_path)
        rows = Output(paths, format, annotate, output, resume)
        with ThreadPoolExecutor(1) as pool:
            if options.faces != "none":
                pool.submit(open_network)
            predictor = Predictor.load(ckpt_path)
        reader = PhotoReader(options, predictor.image_size, annotate is not None, predictor.of_cards)
        _log.info(f"Network      {predictor.source}")
        advice = "; for face crops, --faces none is quicker" if reader.finds_faces else ""
        _log.info(f"Faces        {reader.description}{advice}")
        rows.open(None, predictor.source, batch_size=data.batch_size, **asdict(options))

        def answer(batch: Sequence[Photo]) -> None:
            rows.write(batch, predictor(np.concatenate([photo.crops for photo in batch]), data.batch_size))

        rows.fill(reader, data.batch_size, answer)


def _named_table(output: str | None, inputs: Sequence[Path], resume: bool) -> Path | None:
    """The table that ``--output`` names, if it does; raises UserError where it cannot be written."""
    if output is None:
        return None
    table = user_path(output)
    problem = None
    if output == STDOUT:
        problem = "cannot be resumed: name a file" if resume else None
    elif table.suffix.lower()[1:] not in PREDICTIONS_FILES:
        problem = "must end in .csv or .jsonl, or be - for stdout"
    elif table.is_dir() or not table.parent.is_dir():
        problem = "is a folder: name a file in it" if table.is_dir() else "lies in no folder that exists: make it first"
    elif any(path.name == table.name and os.path.realpath(path) == os.path.realpath(table) for path in inputs):
        problem = "is one of the inputs: name another file"
    if problem is not None:
        raise UserError(f"--output {output} {problem}.")
    return table


def rows_of(photo: Photo, answers: Sequence[Answer]) -> Iterator[Row]:
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


class Output:
    """Where the rows of a job go as they are made: to a part of the table, for each of its processes, or to stdout.

    The arguments are those of ``predict``, and raise UserError where nothing could be written. ``first`` is the input
    to begin with, once it is open.
    """

    name, columns = "Predictions", COLUMNS  # of the table

    def __init__(
        self, paths: Sequence[Path], format: Format, annotate: str | None, output: str | None, resume: bool
    ) -> None:
        self.first, self._paths, self._format, self._resume = 0, paths, format, resume
        self._table, self._stdout = _named_table(output, paths, resume), output == STDOUT
        self._annotate, self._copies = annotate, None if annotate is None else annotator(annotate, paths)

    def open(self, run: Path | None, network: str, rank: int = 0, ranks: int = 1, **options: Any) -> None:
        """Opens the part of this process, one of ``ranks``; raises UserError where the job is not that of the part.

        A table without a name is in ``run``, or in the next run folder where that is None.
        """
        if self._stdout:
            self._part: IO[bytes] = open(1, "wb", closefd=False)  # noqa: SIM115 (not sys.stdout)
            self._rows = TableWriter(self._part, self._format, self.columns)
            return
        if self._table is None:
            runs = Path(RUNS_FOLDER) if run is None else run.parent
            stopped = unfinished_run(runs) if self._resume else None
            self._table = (stopped or run or runs / f"version_{reserve_run(Path())}") / PREDICTIONS_FILES[self._format]
        self._parts = [self._table.with_suffix(f".part{number}") for number in range(ranks)]
        job = describe_job(self._paths, network, annotate=self._annotate, processes=ranks, **options)
        try:
            self._part, self.first = open_part(self._parts[rank], job, self._resume)
        except OSError as error:
            raise UserError(f"{self._table} cannot be written: {error.strerror}.") from None
        self._some = self.first > 0
        if self._resume:
            _log.info(f"Resumed      {self.first:,} inputs were done")

    def write(self, photos: Sequence[Photo], answers: Sequence[Answer]) -> None:
        """Writes the rows of a batch, which outlive this process, and its annotated copies."""
        found, rows = iter(answers), list[Row]()
        for photo in photos:
            of_photo = photo.answers(found)
            rows += rows_of(photo, of_photo)
            if self._copies is not None:
                self._copies(photo, of_photo)
        self.add(rows)

    def fill(self, reader: PhotoReader, batch_size: int, write: Callable[[Sequence[Photo]], None]) -> Counter[str]:
        """Has the photos that are left written, in batches and by this process, and joins; what fails stops the job."""
        paths = self._paths
        try:
            with tqdm(total=len(paths), initial=self.first, desc=self.name, unit="photo", disable=None) as bar:
                for batch in photo_batches(list(enumerate(paths))[self.first :], reader, batch_size):
                    write(batch)
                    bar.set_postfix_str(batch[-1].place)
                    bar.update(batch[-1].index + (batch[-1].seconds is None) - bar.n)  # a video may go on
                bar.update(len(paths) - bar.n)
        except BaseException:
            self.stop()
            raise
        return self.join()

    def add(self, rows: Sequence[Row]) -> None:
        """Writes the rows of a batch, which outlive this process."""
        if self._stdout:
            self._rows.write(rows)
            return
        try:
            self._part.write(json.dumps(rows).encode() + b"\n")
            self._part.flush()
            self._some = True
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._part.name) from None

    def stop(self) -> None:
        """Gives up the part of this process, and says that it can be resumed; one without rows is removed."""
        if self._stdout:
            return
        with contextlib.suppress(OSError):  # of a full disk; all else is written
            self._part.close()
        if self._some:
            _log.info(f"Stopped      rows so far are in {self._part.name}: --resume goes on with them")
        else:
            Path(self._part.name).unlink()

    def join(self) -> Counter[str]:
        """Makes the table of all parts, says where it is, and returns how many rows have each status.

        Raises UserError, when it is there, if none of the inputs was read.
        """
        assert self._table is not None
        self._part.close()
        counts = self._rows.counts if self._stdout else join_parts(self._parts, self._table, self.columns)
        counted = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        _log.info(f"{len(self._paths):,} inputs: {counted}")
        _log.info(f"{self.name:13}{self._table}")
        if set(counts) == {"unreadable"}:
            raise UserError(f"no input could be read: the column reason of {self._table} says why.")
        return counts


class TableWriter:
    """Writes rows as CSV or JSON lines; ``counts`` has how many rows have each status."""

    def __init__(self, file: IO[bytes], format: Format, columns: Sequence[str] = COLUMNS) -> None:
        self.counts: Counter[str] = Counter()
        self._file, self._format, self._columns = file, format, columns
        # With its usual end of a line, which is not that of the file, the writer quotes every kind of line break.
        self._csv = csv.DictWriter(SimpleNamespace(write=self._write_line), columns, extrasaction="ignore")
        if format == "csv":
            self._csv.writeheader()

    def write(self, rows: Iterable[Row]) -> None:
        """Writes some rows, at once."""
        for row in rows:
            self.counts[str(row["status"])] += 1
            if self._format == "csv":
                safe = {name: f"./{row[name]}" for name in _PATHS if str(row.get(name)).startswith(_FORMULA)}
                self._csv.writerow(row | safe)
            else:
                self._write_line(json.dumps({name: row[name] for name in self._columns if name in row}))
        self._file.flush()

    def _write_line(self, text: str) -> None:
        self._file.write(text.removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n")


def join_parts(parts: Sequence[Path], table: Path, columns: Sequence[str] = COLUMNS) -> Counter[str]:
    """Joins what several processes have written, in the order of the inputs, and removes it; returns the counts."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(atomic_write(table))
        writer = TableWriter(file, "csv" if table.suffix.lower() == ".csv" else "jsonl", columns)
        rows = [read_part(stack.enter_context(part.open("rb"))) for part in parts]
        writer.write(heapq.merge(*rows, key=lambda row: row["index"]))
    for part in parts:
        part.unlink()
    return writer.counts
